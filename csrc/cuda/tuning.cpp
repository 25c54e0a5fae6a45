#include "cuda/tuning.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

#include <nlohmann/json.hpp>

#include "error.h"
#include "message.h"

namespace uf::cuda {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int format = 1;
constexpr uintmax_t largest_file = uintmax_t{4} << 20; // bytes; a table of 100 ops has about 30 KB

// Tells files and networks apart; not proof against somebody who wants two alike, who would gain nothing.
class Fingerprint {
  public:
    void add(int64_t number) {
        value_ = (value_ ^ static_cast<uint64_t>(number)) * 0x9E3779B97F4A7C15U;
        value_ ^= value_ >> 32U;
    }
    void add(std::string_view text) {
        add(static_cast<int64_t>(text.size())); // so that "ab", "c" is not "a", "bc"
        while (!text.empty()) {
            int64_t word = 0;
            const size_t bytes = std::min(text.size(), sizeof word);
            std::memcpy(&word, text.data(), bytes);
            add(word);
            text.remove_prefix(bytes);
        }
    }
    std::string text() const {
        std::string digits;
        for (int shift = 60; shift >= 0; shift -= 4)
            digits += "0123456789abcdef"[value_ >> static_cast<unsigned>(shift) & 15U];
        return digits;
    }

  private:
    uint64_t value_ = 0xCBF29CE484222325U;
};

// What times depend on, weights excepted.  `network` leaves out the code, so that a table serves what another compiler
// made of the same candidates.
struct Identity {
    std::string network, engine;
};

Identity identity(const Selection &selection, const Plan &plan) {
    Fingerprint network, engine;
    network.add(plan.tile);
    network.add(selection.precision);
    for (const Buffer &buffer : plan.buffers)
        for (const int64_t number :
             {int64_t{buffer.channels}, buffer.height.multiply, buffer.height.add, buffer.height.divide,
              buffer.width.multiply, buffer.width.add, buffer.width.divide})
            network.add(number);
    for (const Step &step : selection.steps) {
        const Op &op = *step.op;
        network.add(static_cast<int64_t>(op.kind));
        for (const std::vector<int> &buffers : {op.inputs, op.outputs}) {
            network.add(static_cast<int64_t>(buffers.size()));
            for (const int buffer : buffers)
                network.add(buffer);
        }
        network.add(op.kernel[0]);
        network.add(op.kernel[1]);
        for (const std::vector<Candidate> &candidates : step.candidates) {
            network.add(static_cast<int64_t>(candidates.size()));
            for (const Candidate &candidate : candidates) {
                network.add(candidate.kernel->candidate);
                engine.add(candidate.code->entry);
                engine.add(plan.kernels->modules[candidate.code->module]);
            }
        }
    }
    engine.add(network.text());
    return {network.text(), engine.text()};
}

// The name of a GPU as part of a file's.
std::string plain(const std::string &name) {
    std::string result;
    for (const char character : name) {
        const bool letter = (character >= 'a' && character <= 'z') || (character >= '0' && character <= '9');
        const bool capital = character >= 'A' && character <= 'Z';
        if (letter || capital)
            result += capital ? static_cast<char>(character - 'A' + 'a') : character;
        else if (!result.empty() && result.back() != '-')
            result += '-';
    }
    return result;
}

// Where the user's cache is; empty where he has none.
fs::path cache_folder() {
    const auto variable = [](const char *name) {
        const char *const value = std::getenv(name);
        return fs::path(value == nullptr ? "" : value);
    };
    if (const fs::path own = variable("UNET_FAST_CACHE"); !own.empty())
        return own;
    if (const fs::path cache = variable("XDG_CACHE_HOME"); cache.is_absolute())
        return cache / "unet_fast";
    const fs::path home = variable("HOME");
    return home.empty() ? home : home / ".cache" / "unet_fast";
}

fs::path cache_file(const Identity &identity, const Device &device) {
    const fs::path folder = cache_folder();
    if (folder.empty())
        return folder;
    return folder / "tunings" /
           message(plain(device.name()), "-sm", device.capability(), "-driver", device.driver_version(), "-",
                   identity.engine, ".json");
}

// Where tables that others have measured lie: the folder of the user's choice, and the one beside this library.
std::vector<fs::path> shipped_folders() {
    std::vector<fs::path> folders;
    if (const char *const own = std::getenv("UNET_FAST_TUNINGS"); own != nullptr && *own != '\0')
        folders.emplace_back(own);
    Dl_info library{};
    if (dladdr(reinterpret_cast<const void *>(&shipped_folders), &library) != 0 && library.dli_fname != nullptr)
        folders.push_back(fs::path(library.dli_fname).parent_path() / "unet_fast-tunings");
    return folders;
}

std::vector<fs::path> shipped_files() {
    std::vector<fs::path> files;
    for (const fs::path &folder : shipped_folders()) {
        std::error_code ignored;
        const auto first = static_cast<std::ptrdiff_t>(files.size());
        for (auto entry = fs::directory_iterator(folder, ignored); entry != fs::directory_iterator();
             entry.increment(ignored))
            if (entry->path().extension() == ".json")
                files.push_back(entry->path());
        std::sort(files.begin() + first, files.end());
    }
    return files;
}

[[noreturn]] void unusable(const std::string &why) { throw Error(UF_ERR_BAD_FILE, why); }

// The document of a table.  Whatever the file holds, this returns or throws uf::Error.
json read_document(const fs::path &path) {
    std::error_code failure;
    if (!fs::is_regular_file(path, failure) || fs::file_size(path, failure) > largest_file)
        unusable("it is no file, or too large for a tuning table");
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file)
        unusable("it cannot be read");
    json document = json::parse(text, nullptr, false);
    if (!document.is_object() || document.value("unet_fast_tuning", json()) != json(format))
        unusable(message("it is not a tuning table of format ", format));
    return document;
}

// Throws nlohmann's exceptions.
TuningTable table_of(const json &document) {
    TuningTable table;
    for (const json &entry : document.at("steps")) {
        TunedStep step;
        step.op = entry.at("op").get<size_t>();
        step.step = entry.at("step").get<int>();
        step.variant = entry.at("variant").get<std::string>();
        step.winner = entry.at("winner").get<std::string>();
        table.steps.push_back(std::move(step));
    }
    return table;
}

// Whether the document holds all of `wanted`.
bool agrees(const json &document, const json &wanted) {
    for (const auto &[key, value] : wanted.items())
        if (!document.contains(key) || document.at(key) != value)
            return false;
    return true;
}

json device_key(const Selection &selection, const Device &device) {
    return {{"device", device.name()}, {"capability", device.capability()}, {"precision", selection.precision}};
}

json cache_key(const Selection &selection, const Identity &identity, const Device &device) {
    json key = device_key(selection, device);
    key["driver"] = device.driver_version();
    key["engine"] = identity.engine;
    return key;
}

json shipped_key(const Selection &selection, const Identity &identity, const Device &device) {
    json key = device_key(selection, device);
    key["network"] = identity.network;
    return key;
}

void order_by_document(const json &document, Selection &selection) {
    TuningTable table;
    try {
        table = table_of(document);
    } catch (const json::exception &error) {
        unusable(message("its steps are malformed (", error.what(), ")"));
    }
    order_by(table, selection);
}

void write_beside_and_rename(const fs::path &path, const std::string &text) {
    const auto failed = [&](const char *doing, const std::string &why) {
        throw Error(UF_ERR_IO, message("cannot ", doing, " ", path.string(), ": ", why,
                                       "; name another folder in UNET_FAST_CACHE"));
    };
    std::error_code failure;
    if (path.has_parent_path())
        fs::create_directories(path.parent_path(), failure);
    if (failure)
        failed("make the folder of", failure.message());
    std::string draft = path.string() + ".XXXXXX";
    const int descriptor = mkstemp(draft.data());
    if (descriptor < 0)
        failed("write", std::strerror(errno));
    size_t done = 0;
    ssize_t written = 0;
    while (done < text.size() && (written = write(descriptor, text.data() + done, text.size() - done)) > 0)
        done += static_cast<size_t>(written);
    if (done == text.size() && fsync(descriptor) != 0)
        done = 0;
    const int why = errno;
    const bool closed = close(descriptor) == 0;
    if (done == text.size() && closed)
        fs::rename(draft, path, failure);
    if (done < text.size() || !closed || failure) {
        std::error_code ignored;
        fs::remove(draft, ignored);
        failed("write", failure ? failure.message() : std::strerror(why));
    }
}

} // namespace

std::string variant_name(const Step &step, size_t variant) {
    switch (step.role) {
    case Step::Role::reads_image:
        return std::array{"uint8", "uint16", "float32"}[variant];
    case Step::Role::writes_result:
        return std::array{"mask", "probability"}[variant];
    case Step::Role::inner:
        break;
    }
    return "";
}

void order_by(const TuningTable &table, Selection &selection) {
    Selection ordered = selection;
    for (const TunedStep &tuned : table.steps) {
        std::vector<Candidate> *candidates = nullptr;
        for (Step &step : ordered.steps)
            for (size_t variant = 0; variant < step.candidates.size(); ++variant)
                if (std::vector<Candidate> &list = step.candidates[variant];
                    !list.empty() && list[0].kernel->op == tuned.op && list[0].kernel->step == tuned.step &&
                    variant_name(step, variant) == tuned.variant)
                    candidates = &list;
        if (candidates == nullptr)
            unusable(message("this engine has no op ", tuned.op, " with step ", tuned.step));
        const auto winner = std::find_if(candidates->begin(), candidates->end(), [&](const Candidate &candidate) {
            return candidate.kernel->candidate == tuned.winner;
        });
        if (winner == candidates->end())
            unusable(message("op ", tuned.op, " has no candidate ", in_quotes(tuned.winner), " on this GPU"));
        std::rotate(candidates->begin(), winner, winner + 1);
    }
    selection = std::move(ordered);
}

Tuning apply_tuning(Selection &selection, const Plan &plan, const Device &device) {
    const Identity identity = cuda::identity(selection, plan);
    std::string passed_over;
    const auto use = [&](const fs::path &path, const json &key, bool must_agree) {
        try {
            const json document = read_document(path);
            if (!agrees(document, key)) {
                if (must_agree)
                    unusable("it is for another device, driver or engine");
                return false;
            }
            order_by_document(document, selection);
            return true;
        } catch (const Error &error) {
            passed_over += message("; ", path.string(), " is not used: ", error.what());
            return false;
        }
    };
    std::error_code ignored;
    const fs::path cached = cache_file(identity, device);
    if (!cached.empty() && fs::exists(cached, ignored) && use(cached, cache_key(selection, identity, device), true))
        return {message("measured on this GPU, kept in ", cached.string()), cached.string()};
    for (const fs::path &path : shipped_files())
        if (use(path, shipped_key(selection, identity, device), false))
            return {message("measured for ", device.name(), ", from ", path.string(), passed_over), path.string()};
    return {message("not measured on this GPU: the engine file's own order; `unet-fast tune` measures", passed_over),
            ""};
}

std::string keep_tuning(const TuningTable &table, const Selection &selection, const Plan &plan, const Device &device,
                        const std::string &path) {
    const Identity identity = cuda::identity(selection, plan);
    json document = cache_key(selection, identity, device);
    document["unet_fast_tuning"] = format;
    document["network"] = identity.network;
    document["name"] = plan.name;
    document["images"] = {table.count, table.height, table.width};
    document["steps"] = json::array();
    for (const TunedStep &tuned : table.steps) {
        json seconds = json::array();
        for (const auto &[candidate, time] : tuned.seconds)
            seconds.push_back({{"candidate", candidate}, {"seconds", time}});
        document["steps"].push_back({{"op", tuned.op},
                                     {"name", plan.ops[tuned.op].name},
                                     {"step", tuned.step},
                                     {"variant", tuned.variant},
                                     {"winner", tuned.winner},
                                     {"measured", seconds}});
    }
    const fs::path target = path.empty() ? cache_file(identity, device) : fs::path(path);
    if (target.empty())
        throw Error(UF_ERR_IO, "there is no place to keep the tuning: set UNET_FAST_CACHE to a folder");
    write_beside_and_rename(target, document.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
    return target.string();
}

} // namespace uf::cuda
