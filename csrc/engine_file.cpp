#include "engine_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <system_error>

#include <nlohmann/json.hpp>

#include "cuda/kernel_table.h"
#include "error.h"
#include "json_document.h"
#include "json_value.h"
#include "message.h"

namespace uf {

namespace {

constexpr int64_t newest_format_version = 1;

// Far above what any network needs, low enough that a hostile file cannot make the reader work or allocate for long.
constexpr uint64_t most_header_bytes = uint64_t{16} << 20;
constexpr size_t start_bytes = 9; // by which a file of another kind is known
constexpr size_t most_tensors = 65536, most_ops = 4096, most_buffers = 4096, most_rank = 8;
constexpr int most_channels = 65536, largest_side = 65536, largest_halo = 16;

template <class... Parts> [[noreturn]] void foreign(const Parts &...parts) {
    throw Error(UF_ERR_BAD_FILE, message("not an engine file: ", parts...,
                                         "; `unet-fast freeze` makes an engine file from a trained network"));
}

// The safetensors container.

struct Entry {
    std::string dtype;
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0; // bytes of the data section
};

// RFC 1950.  Blocks are taken as rows, whose columns add up in vectors: the sums of a column stay below 2^16
// (255 * rows, and 255 * rows * (rows - 1) / 2 for those that count a row as often as rows follow it).
uint32_t adler32(const std::byte *data, size_t size) {
    constexpr size_t rows = 16, columns = 64, block = rows * columns;
    constexpr uint32_t modulus = 65521;
    uint32_t low = 1, high = 0;
    for (; size >= block; data += block, size -= block) {
        uint16_t sums[columns] = {}, earlier[columns] = {};
        for (size_t row = 0; row < rows; ++row) {
            for (size_t column = 0; column < columns; ++column) {
                earlier[column] = static_cast<uint16_t>(earlier[column] + sums[column]);
                sums[column] =
                    static_cast<uint16_t>(sums[column] + static_cast<uint16_t>(data[row * columns + column]));
            }
        }
        uint32_t sum = 0, weighted = 0;
        for (size_t column = 0; column < columns; ++column) {
            sum += sums[column];
            weighted += columns * earlier[column] + static_cast<uint32_t>(columns - column) * sums[column];
        }
        high = (high + block * low + weighted) % modulus;
        low = (low + sum) % modulus;
    }
    for (; size > 0; ++data, --size) {
        low = (low + static_cast<uint32_t>(*data)) % modulus;
        high = (high + low) % modulus;
    }
    return high << 16 | low;
}

// The first value that is infinite or no number, `size` if there is none.  Blocks are checked in vectors.
size_t first_not_finite(const float *values, size_t size) {
    constexpr size_t block = 256;
    size_t begin = 0;
    for (; begin + block <= size; begin += block) {
        uint32_t found = 0;
        for (size_t i = 0; i < block; ++i) {
            uint32_t bits = 0;
            std::memcpy(&bits, values + begin + i, sizeof bits);
            found |= static_cast<uint32_t>((bits & 0x7f800000U) == 0x7f800000U);
        }
        if (found != 0)
            break;
    }
    while (begin < size && std::isfinite(values[begin]))
        ++begin;
    return begin;
}

// Bytes of the JSON behind the first 8, of a file of `size` bytes whose first 9, or all, are at `data`.
uint64_t header_length(const std::byte *data, size_t size) {
    const std::string_view start(reinterpret_cast<const char *>(data), std::min(size, start_bytes));
    if (size == 0)
        foreign("it is empty");
    if (start.substr(0, 2) == "PK")
        foreign("a zip archive, such as a PyTorch checkpoint");
    if (start.substr(0, 4) == "\x89HDF")
        foreign("an HDF5 file, such as a Keras model");
    if (size < start_bytes || start[8] != '{')
        foreign("it does not begin like one");
    uint64_t length = 0;
    for (size_t i = 0; i < 8; ++i)
        length |= static_cast<uint64_t>(data[i]) << (8 * i);
    if (length > most_header_bytes)
        bad("its header has ", length, " bytes, at most ", most_header_bytes, " are allowed");
    if (length > size - 8)
        bad("it was cut off within its header: ", size, " bytes, expected at least ", length + 8);
    return length;
}

class Container {
  public:
    Container(const std::byte *data, size_t size, std::shared_ptr<const void> owner, bool is_consumed)
        : file_(data), size_(size), owner_(std::move(owner)), is_consumed_(is_consumed),
          header_bytes_(header_length(data, size)), data_(data + 8 + header_bytes_),
          header_({reinterpret_cast<const char *>(data) + 8, static_cast<size_t>(header_bytes_)}, "the header") {
        const uint64_t data_bytes = size - 8 - header_bytes_;
        const nlohmann::json &header = header_.root();
        if (!header.contains("__metadata__"))
            foreign("a safetensors file without metadata holds weights, but no plan");
        if (header.size() > most_tensors + 1)
            bad("it lists ", header.size() - 1, " tensors, at most ", most_tensors, " are allowed");
        for (const auto &[name, entry] : header.items())
            if (name != "__metadata__")
                entries_.emplace(name, read_entry(name, Value(entry, "tensor " + in_quotes(name)), data_bytes));
        check_layout(data_bytes);
    }

    // The string with our document.
    const std::string &document() const {
        const Value metadata(header_.root().at("__metadata__"), "__metadata__");
        if (!metadata.has("unet_fast"))
            foreign("a safetensors file with metadata of another program");
        return metadata["unet_fast"].text(most_header_bytes);
    }

    bool has(const std::string &name) const { return entries_.count(name) != 0; }

    // A float32 tensor with finite values, or an int8 tensor, which is copied out.
    Tensor tensor(const std::string &name, bool int8 = false) const {
        const auto found = entries_.find(name);
        if (found == entries_.end())
            bad("tensor ", in_quotes(name), " is missing");
        const Entry &entry = found->second;
        const char *expected = int8 ? "I8" : "F32";
        if (entry.dtype != expected)
            bad("tensor ", in_quotes(name), " is ", entry.dtype, ", expected ", expected);
        Tensor result;
        result.shape = entry.shape;
        if (int8) {
            const auto *from = reinterpret_cast<const int8_t *>(data_);
            result.integers.assign(from + entry.begin, from + entry.end);
            if (result.empty())
                bad("tensor ", in_quotes(name), " is empty");
            return result;
        }
        const auto size = static_cast<size_t>((entry.end - entry.begin) / sizeof(float));
        if (size == 0)
            bad("tensor ", in_quotes(name), " is empty");
        result.values = floats(data_ + entry.begin, size);
        const size_t found_at = first_not_finite(result.values.data(), size);
        if (found_at != size)
            bad("tensor ", in_quotes(name), " holds ", result.values[found_at], " at element ", found_at);
        return result;
    }

    // Whether the bytes are those that were written, where the file says so.
    void check_sum() const {
        const auto found = entries_.find("~adler32");
        if (found == entries_.end())
            return;
        const Entry &entry = found->second;
        if (entry.dtype != "U8" || entry.end - entry.begin != 4 || data_ + entry.end != file_ + size_)
            bad("the checksum must be the last 4 bytes, of type U8");
        uint32_t stored = 0;
        for (size_t i = 0; i < 4; ++i)
            stored |= static_cast<uint32_t>(data_[entry.begin + i]) << (8 * i);
        if (adler32(file_, size_ - 4) != stored)
            bad("its bytes do not give its checksum; copy it again from where it is whole");
    }

    // The contents of a U8 tensor.
    std::string bytes(const std::string &name) const {
        const auto found = entries_.find(name);
        if (found == entries_.end() || found->second.dtype != "U8" || found->second.begin == found->second.end)
            bad("there is no U8 tensor ", in_quotes(name), " with GPU code");
        const Entry &entry = found->second;
        return {reinterpret_cast<const char *>(data_) + entry.begin, static_cast<size_t>(entry.end - entry.begin)};
    }

  private:
    // Where they lie, if they are kept and aligned there; else copied.
    Floats floats(const std::byte *from, size_t size) const {
        if (owner_ != nullptr && reinterpret_cast<uintptr_t>(from) % alignof(float) == 0) {
            const auto *first = reinterpret_cast<const float *>(from);
            if (!is_consumed_)
                return {std::shared_ptr<const float>(owner_, first), size};
            // No other tensor holds it: names of ops differ, and so do those of an op's tensors.
            const auto give_back = [owner = owner_, bytes = size * sizeof(float)](const float *values) {
                give_back_pages(reinterpret_cast<std::byte *>(const_cast<float *>(values)), bytes);
            };
            return {std::shared_ptr<const float>(first, give_back), size};
        }
        std::vector<float> copy(size);
        std::memcpy(copy.data(), from, size * sizeof(float));
        return copy;
    }

    static uint64_t item_bytes(const Value &dtype) {
        return static_cast<uint64_t>(dtype.choice<int>({{"F64", 8},
                                                        {"I64", 8},
                                                        {"U64", 8},
                                                        {"F32", 4},
                                                        {"I32", 4},
                                                        {"U32", 4},
                                                        {"F16", 2},
                                                        {"BF16", 2},
                                                        {"I16", 2},
                                                        {"U16", 2},
                                                        {"I8", 1},
                                                        {"U8", 1},
                                                        {"BOOL", 1},
                                                        {"F8_E4M3", 1},
                                                        {"F8_E5M2", 1}}));
    }

    static Entry read_entry(const std::string &name, const Value &value, uint64_t data_bytes) {
        if (name.size() > 2 * longest_name)
            bad("a tensor has a name of ", name.size(), " bytes");
        Entry entry;
        entry.dtype = value["dtype"].text(longest_name);
        const uint64_t item = item_bytes(value["dtype"]);
        uint64_t length = item;
        for (const Value &extent : value["shape"].items(0, most_rank)) {
            entry.shape.push_back(extent.integer(0, std::numeric_limits<int64_t>::max()));
            if (__builtin_mul_overflow(length, static_cast<uint64_t>(entry.shape.back()), &length))
                bad(value.where(), " is larger than any file: shape ", list(entry.shape));
        }
        const std::vector<Value> offsets = value["data_offsets"].items(2, 2);
        const int64_t last = static_cast<int64_t>(std::min<uint64_t>(data_bytes, std::numeric_limits<int64_t>::max()));
        entry.begin = static_cast<uint64_t>(offsets[0].integer(0, last));
        entry.end = static_cast<uint64_t>(offsets[1].integer(static_cast<int64_t>(entry.begin), last));
        if (entry.end - entry.begin != length)
            bad(value.where(), " has ", entry.end - entry.begin, " bytes, but its shape ", list(entry.shape), " of ",
                entry.dtype, " takes ", length);
        return entry;
    }

    // As safetensors demands: the tensors fill the data section, without gaps and overlaps.
    void check_layout(uint64_t data_bytes) const {
        std::vector<const std::pair<const std::string, Entry> *> order;
        order.reserve(entries_.size());
        for (const auto &entry : entries_)
            order.push_back(&entry);
        std::sort(order.begin(), order.end(), [](const auto *a, const auto *b) {
            return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
        });
        uint64_t position = 0;
        for (const auto *entry : order) {
            if (entry->second.begin != position)
                bad("tensor ", in_quotes(entry->first), " begins at byte ", entry->second.begin,
                    " of the data, expected ", position);
            position = entry->second.end;
        }
        if (position != data_bytes)
            bad("it has ", data_bytes, " bytes of data, but its tensors take ", position);
    }

    const std::byte *const file_;
    const size_t size_;
    const std::shared_ptr<const void> owner_;
    const bool is_consumed_;
    const uint64_t header_bytes_;
    const std::byte *const data_; // of the tensors
    const JsonDocument header_;
    std::map<std::string, Entry> entries_;
};

// The document.

class DocumentReader {
  public:
    DocumentReader(const Container &container, const nlohmann::json &document)
        : container_(container), root_(document, "") {}

    Plan read() {
        read_version();
        plan_.name = root_["name"].text(longest_name);
        plan_.precision = root_["precision"].choice<const char *>(
            {{"float32", "float32"}, {"bf16", "bf16"}, {"fp16", "fp16"}, {"int8", "int8"}});
        read_input(root_["input"]);
        read_output(root_["output"]);
        const Value size = root_["size"];
        plan_.multiple = size["multiple"].small(1, largest_side);
        plan_.remainder = size["remainder"].small(0, plan_.multiple - 1);
        plan_.minimum = size["minimum"].small(1, largest_side);
        plan_.tile = root_["tile"].small(1, largest_side);
        plan_.margin = root_["margin"].small(0, largest_side);
        plan_.halo = root_["halo"].is_null() ? -1 : root_["halo"].small(0, largest_side);
        plan_.slots = root_["slots"].small(0, static_cast<int>(most_buffers));
        for (const Value &buffer : root_["buffers"].items(1, most_buffers))
            read_buffer(buffer);
        for (const Value &op : root_["ops"].items(1, most_ops))
            read_op(op);
        check_unused_parts();
        return std::move(plan_);
    }

  private:
    void read_version() const {
        const int64_t version = root_["format_version"].integer(1, std::numeric_limits<int64_t>::max());
        if (version > newest_format_version)
            throw Error(UF_ERR_VERSION,
                        message("the engine file has format version ", version, ", this unet_fast ", UF_VERSION_MAJOR,
                                '.', UF_VERSION_MINOR, '.', UF_VERSION_PATCH, " reads versions up to ",
                                newest_format_version, "; update unet_fast, or freeze the network with this version"));
    }

    void read_input(const Value &input) {
        plan_.channels = input["channels"].small(1, 4);
        const Value normalisation = input["normalisation"];
        plan_.normalisation.kind = normalisation["kind"].choice<NormalisationKind>(
            {{"fixed", NormalisationKind::fixed}, {"standardise", NormalisationKind::standardise}});
        if (plan_.normalisation.kind == NormalisationKind::standardise) {
            plan_.normalisation.epsilon = normalisation["epsilon"].number(1e-12, 1.0);
            return;
        }
        const auto channels = static_cast<size_t>(plan_.channels);
        for (const Value &mean : normalisation["mean"].items(channels, channels))
            plan_.normalisation.mean.push_back(mean.number(-1e6, 1e6));
        for (const Value &deviation : normalisation["std"].items(channels, channels))
            plan_.normalisation.std.push_back(deviation.number(1e-12, 1e12));
    }

    void read_output(const Value &output) {
        plan_.output_kind = output["kind"].choice<OutputKind>(
            {{"sigmoid", OutputKind::sigmoid}, {"softmax", OutputKind::softmax}, {"identity", OutputKind::identity}});
        plan_.output_channels = output["channels"].small(1, most_channels);
        plan_.threshold = output["threshold"].number(1e-6, 1.0 - 1e-6);
    }

    void read_buffer(const Value &value) {
        Buffer buffer;
        buffer.name = value["name"].name();
        buffer.channels = value["channels"].small(1, most_channels);
        buffer.height = extent(value["height"]);
        buffer.width = extent(value["width"]);
        buffer.halo = value["halo"].small(0, largest_halo);
        buffer.slot = value["slot"].small(-1, plan_.slots - 1);
        if (!buffer_indices_.emplace(buffer.name, static_cast<int>(plan_.buffers.size())).second)
            bad("buffer ", in_quotes(buffer.name), " stands twice in the list");
        plan_.buffers.push_back(std::move(buffer));
    }

    static Extent extent(const Value &value) {
        constexpr int64_t any = std::numeric_limits<int32_t>::max();
        const std::vector<Value> numbers = value.items(3, 3);
        return {numbers[0].integer(1, any), numbers[1].integer(-any, any), numbers[2].integer(1, any)};
    }

    void read_op(const Value &value) {
        Op op;
        op.name = value["name"].name();
        if (!op_names_.insert(op.name).second)
            bad(value.where(), ": a second op of the name ", in_quotes(op.name));
        const OpRow &row = kind(value["op"]);
        op.kind = row.kind;
        op.inputs = buffers(value["inputs"], row.least_inputs, row.most_inputs);
        op.outputs = buffers(value["outputs"], row.least_outputs, row.most_outputs);
        read_attributes(value, row, op);
        if (value.has("arithmetic")) {
            op.int8 = true;
            op.winograd = value["arithmetic"].choice<bool>({{"int8", false}, {"int8_winograd", true}});
        }
        if (value.has("output_scale"))
            op.output_scale = value["output_scale"].number(1e-30, 1e30);
        for (const int output : op.outputs)
            plan_.buffers[static_cast<size_t>(output)].scale = op.output_scale;
        for (const char *tensor : row.tensors) {
            const bool int8 = op.int8 && std::string_view(tensor).substr(0, 6) == "weight";
            op.tensors.emplace_back(tensor, container_.tensor(op.name + "." + tensor, int8));
        }
        if (op.int8)
            op.tensors.emplace_back("scale", container_.tensor(op.name + ".scale"));
        plan_.ops.push_back(std::move(op));
    }

    static const OpRow &kind(const Value &value) {
        const std::string &given = value.text(longest_name);
        std::string known;
        for (const OpRow &row : op_table()) {
            if (given == row.name)
                return row;
            known += known.empty() ? row.name : message(", ", row.name);
        }
        bad(value.where(), " is ", in_quotes(given), ", known ops are ", known);
    }

    static void read_attributes(const Value &value, const OpRow &row, Op &op) {
        constexpr int any = 1 << 20; // check_plan knows the ranges
        const auto wants = [&](unsigned attribute) { return (row.attributes & attribute) != 0; };
        const std::initializer_list<std::pair<const char *, UpsampleMode>> interpolations = {
            {"nearest", UpsampleMode::nearest},
            {"bilinear", UpsampleMode::bilinear},
            {"bilinear_corners", UpsampleMode::bilinear_corners}};
        if (row.kind == OpKind::up_conv)
            op.kernel = {3, 3};
        if (wants(OpRow::kernel))
            op.kernel = value["kernel"].integers<2>(1, any);
        if (wants(OpRow::padding))
            op.padding = value["padding"].integers<4>(-any, any);
        if (wants(OpRow::stride))
            op.stride = value["stride"].integers<2>(1, any);
        if (wants(OpRow::crop))
            op.crop = value["crop"].integers<2>(0, any);
        if (wants(OpRow::scale))
            op.scale = value["scale"].small(1, any);
        if (wants(OpRow::activation)) {
            op.activation = value["activation"].choice<Activation>({{"none", Activation::none},
                                                                    {"relu", Activation::relu},
                                                                    {"leaky_relu", Activation::leaky_relu},
                                                                    {"sigmoid", Activation::sigmoid},
                                                                    {"tanh", Activation::tanh},
                                                                    {"softmax", Activation::softmax}});
            if (op.activation == Activation::leaky_relu)
                op.slope = value["slope"].number(0.0, 1.0);
        }
        if (row.kind == OpKind::concat_conv)
            op.upsample = value["upsample"].text(longest_name) == "none"
                              ? UpsampleMode::none
                              : value["upsample"].choice<UpsampleMode>(interpolations);
        if (row.kind == OpKind::upsample)
            op.upsample = value["mode"].choice<UpsampleMode>(interpolations);
        if (row.kind == OpKind::l2_normalise)
            op.line = value["mode"].choice<Line>({{"columns", Line::column}, {"rows", Line::row}});
        if (row.kind == OpKind::pool) {
            op.pool = value["mode"].choice<PoolMode>({{"max", PoolMode::max}, {"average", PoolMode::average}});
            op.stride = op.kernel;
        }
    }

    std::vector<int> buffers(const Value &value, int least, int most) const {
        std::vector<int> result;
        for (const Value &item : value.items(static_cast<size_t>(least), static_cast<size_t>(most))) {
            const auto found = buffer_indices_.find(item.text(longest_name));
            if (found == buffer_indices_.end())
                bad(item.where(), " is ", in_quotes(item.text(longest_name)), ", which is not a buffer");
            result.push_back(found->second);
        }
        return result;
    }

    // What this reader does not run shall at least be well formed, so that no other reader stumbles.
    void check_unused_parts() const {
        if (root_.has("golden"))
            for (const Value &pair : root_["golden"].items(0, most_ops))
                for (const char *part : {"image", "probability"})
                    if (!container_.has(pair[part].text(2 * longest_name)))
                        bad(pair[part].where(), ": there is no tensor ", in_quotes(pair[part].text(2 * longest_name)));
        if (root_.has("kernels"))
            for (const Value &kernel : root_["kernels"].items(0, most_tensors))
                kernel.require_object();
    }

    const Container &container_;
    Value root_;
    Plan plan_;
    std::map<std::string, int> buffer_indices_;
    std::set<std::string> op_names_;
};

std::shared_ptr<Plan> read_plan(const Container &container, bool with_gpu_code) {
    const JsonDocument parsed(container.document(), "the plan");
    const nlohmann::json &document = parsed.root();
    auto plan = std::make_shared<Plan>(DocumentReader(container, document).read());
    check_plan(*plan);
    // Last, for what is wrong with a file that was made wrong says more than that its checksum is.
    container.check_sum();
    if (with_gpu_code && document.contains("kernels"))
        plan->kernels = cuda::read_kernel_table({document["kernels"], "kernels"}, *plan,
                                                [&](const std::string &name) { return container.bytes(name); });
    return plan;
}

} // namespace

std::shared_ptr<Plan> read_engine_file(const std::byte *data, size_t size, bool with_gpu_code,
                                       const std::shared_ptr<const void> &owner) {
    return read_plan({data, size, owner, false}, with_gpu_code);
}

std::shared_ptr<Plan> consume_engine_file(const std::shared_ptr<FileBytes> &file, bool with_gpu_code) {
    return read_plan({file->data(), file->size, file, true}, with_gpu_code);
}

FileBytes read_file(const std::string &path) {
    const auto failed = [&](const char *doing) {
        const std::string why = std::generic_category().message(errno);
        throw Error(UF_ERR_IO, message("cannot ", doing, " ", path, ": ", why));
    };
    struct Descriptor {
        int number;
        ~Descriptor() {
            if (number >= 0)
                close(number);
        }
    };
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.number < 0)
        failed("open");
    struct stat status = {};
    if (fstat(file.number, &status) != 0)
        failed("read");
    if (!S_ISREG(status.st_mode))
        throw Error(UF_ERR_IO, message("cannot read ", path, ": it is ",
                                       S_ISDIR(status.st_mode) ? "a directory" : "not a regular file"));
    FileBytes bytes;
    bytes.size = static_cast<size_t>(status.st_size);
    size_t position = 0;
    const auto read_to = [&](std::byte *target, size_t end) {
        while (position < end) {
            const ssize_t count = read(file.number, target + position, end - position);
            if (count < 0 && errno == EINTR)
                continue;
            if (count < 0)
                failed("read");
            if (count == 0)
                throw Error(UF_ERR_IO, message("cannot read ", path, ": it became shorter while it was read"));
            position += static_cast<size_t>(count);
        }
    };
    // A large file of another kind is refused before there is memory for it.
    std::byte start[start_bytes];
    read_to(start, std::min(bytes.size, start_bytes));
    header_length(start, bytes.size);
    bytes.memory = AlignedMemory(bytes.size);
    std::memcpy(bytes.memory.data(), start, position);
    read_to(bytes.memory.data(), bytes.size);
    return bytes;
}

} // namespace uf
