// libFuzzer target: any bytes as an engine file.  The reader opens them or says what is wrong, and what it opens can be
// run: by the executor of plain loops, where that takes little time and memory.
//
// The mutator below goes on from bytes to what engine files are made of: the header, the document in its metadata,
// single values of either, and lengths and a checksum that fit again.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "cpu/cpu_executor.h"
#include "engine_file.h"
#include "error.h"

namespace {

[[noreturn]] void broken(const char *promise, const std::string &what) {
    std::fprintf(stderr, "broken promise: %s: %s\n", promise, what.c_str());
    std::abort();
}

// One line that says what is wrong and, behind a semicolon, what to do.
void check_message(const uf::Error &error) {
    const std::string text = error.what();
    if (error.status() != UF_ERR_BAD_FILE && error.status() != UF_ERR_VERSION)
        broken("files are refused as damaged, foreign or newer", std::to_string(error.status()) + ": " + text);
    if (text.find("; ") == std::string::npos || text.find('\n') != std::string::npos)
        broken("a message is one line with a cause and a fix", text);
}

// Values that the pass over the smallest legal image writes, and multiply-adds, roughly.
double work_of(const uf::Plan &plan) {
    double work = 0.0;
    for (const uf::Op &op : plan.ops) {
        double values = static_cast<double>(plan.minimum) * plan.minimum * plan.output_channels;
        for (const int output : op.outputs) {
            const uf::Buffer &buffer = plan.buffers[static_cast<size_t>(output)];
            values += static_cast<double>(buffer.height.at(plan.minimum)) *
                      static_cast<double>(buffer.width.at(plan.minimum)) * buffer.channels;
        }
        double products = 16.0;
        for (const int input : op.inputs)
            products += 16.0 * plan.buffers[static_cast<size_t>(input)].channels;
        work += values * products;
    }
    return work;
}

void run(const std::shared_ptr<uf::Plan> &plan) {
    if (!(work_of(*plan) < 2e5))
        return;
    const int side = plan->minimum, result = side - 2 * plan->margin;
    const std::vector<uint8_t> pixels(static_cast<size_t>(side) * static_cast<size_t>(side * plan->channels), 100);
    std::vector<float> values(
        static_cast<size_t>(result) * static_cast<size_t>(result) * static_cast<size_t>(plan->output_channels), 0.0F);
    uf::ImageView image;
    image.data = reinterpret_cast<const std::byte *>(pixels.data());
    image.row_stride = static_cast<int64_t>(side) * plan->channels;
    image.pixel_stride = plan->channels;
    image.channel_stride = 1;
    const uf::PixelTransform transform;
    uf::OutputView output;
    output.data = reinterpret_cast<std::byte *>(values.data());
    output.type = uf::ResultType::probability;
    output.row_stride = static_cast<int64_t>(result) * plan->output_channels * static_cast<int64_t>(sizeof(float));
    const std::unique_ptr<uf::Executor> executor = uf::make_reference_executor(plan);
    executor->make_context({1, side, side})->run(&image, &transform, 1, 0.0F, &output, nullptr);
}

// An engine file in its parts.
struct Parts {
    std::string header, data;

    static bool split(const uint8_t *bytes, size_t size, Parts &parts) {
        uint64_t length = 0;
        if (size < 9)
            return false;
        std::memcpy(&length, bytes, 8);
        if (length > size - 8)
            return false;
        const char *text = reinterpret_cast<const char *>(bytes) + 8;
        parts = {std::string(text, text + length), std::string(text + length, text + size - 8)};
        return true;
    }

    std::string join() const {
        const uint64_t length = header.size();
        return std::string(reinterpret_cast<const char *>(&length), 8) + header + data;
    }
};

// Adler-32, one byte at a time.
void repair_checksum(std::string &file) {
    if (file.size() < 4)
        return;
    uint32_t low = 1, high = 0;
    for (size_t i = 0; i + 4 < file.size(); ++i) {
        low = (low + static_cast<uint8_t>(file[i])) % 65521;
        high = (high + low) % 65521;
    }
    const uint32_t sum = high << 16 | low;
    std::memcpy(&file[file.size() - 4], &sum, 4);
}

} // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

namespace {

void mutate_text(std::string &text, size_t most) {
    std::vector<uint8_t> buffer(std::max(most, text.size()));
    std::copy(text.begin(), text.end(), buffer.begin());
    const size_t size = LLVMFuzzerMutate(buffer.data(), text.size(), buffer.size());
    text.assign(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(size));
}

struct Span {
    size_t begin, end;
};

// Every word, with and without the quotes around it, and everything in brackets, with them.  The document is a string
// of the header, so its quotes stand behind backslashes.
std::vector<Span> spans_of(const std::string &text) {
    const auto in_word = [&](size_t i) {
        return std::isalnum(static_cast<uint8_t>(text[i])) || std::strchr("_.+-~", text[i]);
    };
    std::vector<Span> spans;
    std::vector<size_t> open;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '{' || text[i] == '[') {
            open.push_back(i);
        } else if ((text[i] == '}' || text[i] == ']') && !open.empty()) {
            spans.push_back({open.back(), i + 1});
            open.pop_back();
        } else if (text[i] != '\0' && in_word(i)) {
            size_t begin = i;
            while (i + 1 < text.size() && text[i + 1] != '\0' && in_word(i + 1))
                ++i;
            size_t end = i + 1;
            spans.push_back({begin, end});
            if (begin > 0 && end < text.size() && text[begin - 1] == '"') {
                --begin;
                end += text[end] == '\\' ? 2 : 1;
                begin -= begin > 0 && text[begin - 1] == '\\' ? 1 : 0;
                spans.push_back({begin, std::min(end, text.size())});
            }
        }
    }
    return spans;
}

// A value somewhere in the header or the document becomes an odd one or another that stands in it, or goes, or comes
// twice; a number becomes its neighbour.
void mutate_value(std::string &text, std::minstd_rand &random) {
    static const char *const odd[] = {"null",
                                      "true",
                                      "-1",
                                      "0",
                                      "1",
                                      "2",
                                      "3",
                                      "4",
                                      "5",
                                      "16",
                                      "65536",
                                      "2147483648",
                                      "18446744073709551615",
                                      "0.5",
                                      "-1e300",
                                      "1e-30",
                                      "[]",
                                      "{}",
                                      "[1,0,1]",
                                      "[1,1,1,1]",
                                      "\\\"\\\"",
                                      "\\\"image\\\"",
                                      "conv",
                                      "up_conv",
                                      "softmax",
                                      "int8",
                                      "H"};
    const std::vector<Span> spans = spans_of(text);
    if (spans.empty())
        return;
    const auto any = [&](size_t count) { return static_cast<size_t>(random()) % count; };
    const Span place = spans[any(spans.size())], other = spans[any(spans.size())];
    const std::string old = text.substr(place.begin, place.end - place.begin);
    std::string fresh;
    switch (any(6)) {
    case 0:
        fresh = text.substr(other.begin, other.end - other.begin);
        break;
    case 1: // with the comma before it
        text.erase(place.begin, old.size());
        if (place.begin > 0 && text[place.begin - 1] == ',')
            text.erase(place.begin - 1, 1);
        return;
    case 2:
        fresh = old + "," + old;
        break;
    case 3:
        if (old.size() < 10 && old.find_first_not_of("0123456789") == std::string::npos) {
            fresh = std::to_string(std::stol(old) + static_cast<long>(any(5)) - 2);
            break;
        }
        [[fallthrough]];
    default:
        fresh = odd[any(std::size(odd))];
    }
    text.replace(place.begin, old.size(), fresh);
}

} // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    std::minstd_rand random(seed);
    Parts parts;
    const auto way = static_cast<unsigned>(random()) % 8;
    if (way == 0 || !Parts::split(data, size, parts))
        return LLVMFuzzerMutate(data, size, most);
    if (way < 3)
        mutate_text(parts.header, most > 8 + parts.data.size() ? most - 8 - parts.data.size() : 0);
    else
        mutate_value(parts.header, random);
    std::string file = parts.join();
    if (file.size() > most)
        return LLVMFuzzerMutate(data, size, most);
    if (random() % 2 == 0 && parts.header.find("~adler32") != std::string::npos)
        repair_checksum(file);
    std::copy(file.begin(), file.end(), data);
    return file.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    std::shared_ptr<uf::Plan> plan;
    try {
        // Weights are used where they lie, which is in a block of just this size.
        const std::shared_ptr<const void> owner(data, [](const void *) {});
        plan = uf::read_engine_file(reinterpret_cast<const std::byte *>(data), size, true, owner);
    } catch (const uf::Error &error) {
        check_message(error);
        return 0;
    }
    run(plan);
    return 0;
}
