// libFuzzer target: any sequence of calls of the C API, with arguments at and beyond every edge, on one thread.
//
// Each call gives a status and, where it fails, a message; memory is never touched outside what the arguments name,
// which the sanitizers watch; and whatever came before, an engine that was opened at the start gives the same mask.
//
// ENGINE_FILE, a macro: a small engine file of one class.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <fuzzer/FuzzedDataProvider.h>

#include "unet_fast.h"

namespace {

[[noreturn]] void broken(const char *promise, const std::string &what) {
    std::fprintf(stderr, "broken promise: %s: %s\n", promise, what.c_str());
    std::abort();
}

uf_status checked(uf_status status) {
    if (status < UF_OK || status > UF_ERR_INTERNAL)
        broken("a status is one of the header's", std::to_string(status));
    if (status == UF_ERR_INTERNAL || (status != UF_OK && std::strlen(uf_last_error()) < 10))
        broken("a failure says what was wrong", uf_last_error());
    return status;
}

std::vector<char> read_file(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The engine that has to stay well.
class Witness {
  public:
    Witness() : pixels_(64 * 64) {
        for (size_t i = 0; i < pixels_.size(); ++i)
            pixels_[i] = static_cast<uint8_t>(i * i / 7);
        uf_options options = {};
        options.struct_size = sizeof options;
        options.device = "cpu";
        options.threads = 1;
        if (uf_engine_open(ENGINE_FILE, &options, &engine_) != UF_OK)
            broken("the file opens", uf_last_error());
        expected_ = mask();
    }
    void check() const {
        if (mask() != expected_)
            broken("an engine gives the same mask whatever others do", uf_last_error());
    }

  private:
    std::vector<uint8_t> mask() const {
        std::vector<uint8_t> result(pixels_.size(), 7);
        uf_image image = {};
        image.struct_size = sizeof image;
        image.data = pixels_.data();
        image.dtype = UF_UINT8;
        image.height = image.width = 64;
        uf_output output = {};
        output.struct_size = sizeof output;
        output.data = result.data();
        output.dtype = UF_UINT8;
        if (uf_segment(engine_, &image, nullptr, &output) != UF_OK)
            broken("an engine stays usable", uf_last_error());
        return result;
    }

    std::vector<uint8_t> pixels_, expected_;
    uf_engine *engine_ = nullptr;
};

// Bytes from the lowest to the highest that axes of these sizes and strides reach, in a block of just that size.
class Block {
  public:
    // Without memory where more would be needed than `most`.
    Block(const std::vector<std::pair<int64_t, int64_t>> &axes, int64_t item, int64_t most) {
        int64_t low = 0, high = item;
        for (const auto &[size, stride] : axes) {
            int64_t reach = 0;
            if (size < 1 || __builtin_mul_overflow(size - 1, stride, &reach) || reach > most || reach < -most)
                return;
            (reach < 0 ? low : high) += reach;
        }
        if (high - low > most)
            return;
        bytes_.reset(new uint8_t[static_cast<size_t>(high - low)]);
        std::memset(bytes_.get(), 77, static_cast<size_t>(high - low));
        first_ = bytes_.get() - low;
        behind_ = static_cast<size_t>(high);
    }
    uint8_t *first() const { return first_; }
    size_t behind() const { return behind_; } // bytes from the first element to the end

  private:
    std::unique_ptr<uint8_t[]> bytes_;
    uint8_t *first_ = nullptr;
    size_t behind_ = 0;
};

class Program {
  public:
    Program(const uint8_t *data, size_t size, const std::vector<char> &file) : input_(data, size), file_(file) {}
    ~Program() {
        for (uf_context *context : contexts_)
            uf_context_destroy(context);
        for (uf_engine *engine : engines_)
            uf_engine_close(engine);
    }

    void run() {
        // As many calls as a closed handle is remembered for, with those of the destructor.
        for (int calls = 0; calls < 8 && input_.remaining_bytes() > 0; ++calls)
            call();
    }

  private:
    void call() {
        switch (input_.ConsumeIntegralInRange(0, 11)) {
        case 0:
        case 1:
            open();
            break;
        case 2:
            close();
            break;
        case 3:
            info();
            break;
        case 4:
            output_size();
            break;
        case 5:
            describe();
            break;
        case 6:
        case 7:
            segment();
            break;
        case 8:
            create_context();
            break;
        case 9:
        case 10:
            enqueue();
            break;
        default:
            rest();
        }
    }

    template <class Number> Number edge() {
        static const int64_t edges[] = {0,         1,         2,         3,         4,     7,   8,       16,
                                        20,        31,        32,        33,        -1,    -4,  1048576, 1048577,
                                        INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 65536, 4096};
        return static_cast<Number>(edges[input_.ConsumeIntegralInRange<size_t>(0, std::size(edges) - 1)]);
    }
    // Mostly one that can be.
    int32_t side() {
        return input_.ConsumeIntegralInRange(0, 7) == 0 ? edge<int32_t>() : 4 * input_.ConsumeIntegralInRange(1, 10);
    }
    float number() {
        return input_.PickValueInArray<float>(
            {0.0F, 0.0F, 0.0F, 0.3F, 1.0F, -1.0F, 1e-45F, 255.0F, 1e38F, std::numeric_limits<float>::quiet_NaN(),
             std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()});
    }
    size_t struct_size(size_t right) { return input_.ConsumeIntegralInRange(0, 15) == 0 ? edge<size_t>() : right; }
    const char *text() {
        static const char *const texts[] = {nullptr,   "",     "auto", "cpu",   "cpu-reference", "cuda",    "cuda:1",
                                            "float32", "bf16", "int8", "fp16",  "avx2",          "neon",    "portable",
                                            "0",       "0-1",  "0,",   "mono8", "rgb8",          "\xff%s%n"};
        return texts[input_.ConsumeIntegralInRange<size_t>(0, std::size(texts) - 1)];
    }
    uf_engine *engine() { return engines_[input_.ConsumeIntegralInRange<size_t>(0, engines_.size() - 1)]; }

    // The struct in as much memory as it says to have: a size that is accepted is read and written.
    template <class Struct> static std::vector<unsigned char> with_room(const Struct &given) {
        std::vector<unsigned char> room(std::max(sizeof given, given.struct_size <= 4096 ? given.struct_size : 0));
        std::memcpy(room.data(), &given, sizeof given);
        return room;
    }

    void open() {
        uf_options options = {};
        options.struct_size = struct_size(sizeof options);
        options.device = "cpu";
        options.threads = 1;
        if (input_.ConsumeBool()) {
            options.device = text();
            options.precision = text();
            options.cpu_isa = text();
            options.threads = input_.ConsumeIntegralInRange(-1, 3);
            options.refuse_embedded_code = input_.ConsumeBool();
            options.thread_affinity = input_.ConsumeIntegralInRange(0, 7) == 0 ? text() : nullptr;
            // None that would be granted: this is no time for real-time threads.
            options.thread_priority = input_.PickValueInArray<int64_t>({0, 0, 0, -1, 100, INT64_MIN});
        }
        uf_engine *&place = engines_[input_.ConsumeIntegralInRange<size_t>(0, engines_.size() - 1)];
        uf_engine_close(place);
        const std::vector<unsigned char> room = with_room(options);
        const auto *const chosen =
            input_.ConsumeIntegralInRange(0, 7) == 0 ? nullptr : reinterpret_cast<const uf_options *>(room.data());
        if (input_.ConsumeBool()) {
            checked(uf_engine_open(input_.ConsumeIntegralInRange(0, 7) == 0 ? text() : ENGINE_FILE, chosen, &place));
            return;
        }
        std::vector<char> bytes = file_;
        for (int changes = input_.ConsumeIntegralInRange(0, 2); changes > 0; --changes)
            bytes[input_.ConsumeIntegralInRange<size_t>(0, bytes.size() - 1)] = input_.ConsumeIntegral<char>();
        if (input_.ConsumeBool())
            bytes.resize(input_.ConsumeIntegralInRange<size_t>(0, bytes.size()));
        const std::unique_ptr<char[]> exact(new char[bytes.size()]);
        std::copy(bytes.begin(), bytes.end(), exact.get());
        checked(uf_engine_open_memory(exact.get(), bytes.size(), chosen, &place));
    }

    // The handle stays in the table, so that later calls use it closed.
    void close() {
        if (input_.ConsumeBool())
            uf_engine_close(engine());
        else
            uf_context_destroy(contexts_[input_.ConsumeIntegralInRange<size_t>(0, contexts_.size() - 1)]);
    }

    void info() {
        uf_info info = {};
        info.struct_size = struct_size(sizeof info);
        std::vector<unsigned char> room = with_room(info);
        checked(uf_engine_info(
            engine(), input_.ConsumeIntegralInRange(0, 7) == 0 ? nullptr : reinterpret_cast<uf_info *>(room.data())));
    }

    uf_run_options run_options() {
        uf_run_options options = {};
        options.struct_size = sizeof options;
        options.tiling = input_.ConsumeIntegralInRange(-1, 4);
        options.tile = input_.PickValueInArray<int32_t>({0, 0, 4, 8, 16, 20, 64, 33, -4, INT32_MAX, INT32_MIN});
        options.overlap = input_.ConsumeBool() ? 0 : edge<int32_t>();
        options.threshold = number();
        return options;
    }

    void output_size() {
        const uf_run_options options = run_options();
        int32_t height = 0, width = 0;
        const int32_t wanted_height = edge<int32_t>(), wanted_width = edge<int32_t>();
        checked(uf_output_size(engine(), wanted_height, wanted_width, &options, &height, &width));
    }

    void describe() {
        uf_image image = {};
        image.struct_size = sizeof image;
        const int32_t height = edge<int32_t>(), width = edge<int32_t>();
        checked(uf_image_describe(&image, file_.data(), text(), height, width, edge<int64_t>()));
    }

    // An image and a result in blocks of the size that they reach; false where that is too much.
    bool images(uf_image &image, uf_output &output, Block &source, Block &target, int32_t margin) {
        image = {};
        image.struct_size = sizeof image;
        image.dtype = input_.ConsumeIntegralInRange(0, 4);
        image.memory = input_.ConsumeIntegralInRange(0, 31) == 0;
        image.count = input_.ConsumeIntegralInRange(-1, 9);
        image.height = side();
        image.width = side();
        image.channels = input_.ConsumeIntegralInRange(0, 7) == 0 ? edge<int32_t>() : 1;
        image.max_value = number();
        const int64_t item = image.dtype == UF_FLOAT32 ? 4 : image.dtype == UF_UINT16 ? 2 : 1;
        if (input_.ConsumeBool()) {
            const auto stride = [&] { return item * input_.ConsumeIntegralInRange<int64_t>(-200, 200); };
            image.image_stride_bytes = stride();
            image.row_stride_bytes = stride();
            image.pixel_stride_bytes = stride();
            image.channel_stride_bytes = input_.ConsumeBool() ? UF_STRIDE_ZERO : stride();
        }
        const int64_t count = std::max(image.count, 1), channels = std::max(image.channels, 1);
        const auto or_else = [](int64_t stride, int64_t usual) {
            return stride == 0 ? usual : stride == UF_STRIDE_ZERO ? 0 : stride;
        };
        const int64_t channel = or_else(image.channel_stride_bytes, item);
        const int64_t pixel = or_else(image.pixel_stride_bytes, channels * item);
        const int64_t row = or_else(image.row_stride_bytes, image.width * pixel);
        const int64_t picture = or_else(image.image_stride_bytes, image.height * row);
        source =
            Block({{count, picture}, {image.height, row}, {image.width, pixel}, {channels, channel}}, item, 1 << 20);
        image.data = source.first();
        image.size_bytes = input_.ConsumeBool() ? source.behind() : 0;
        output = {};
        output.struct_size = sizeof output;
        output.dtype = input_.ConsumeBool() ? UF_UINT8 : UF_FLOAT32;
        const int64_t height = image.height - 2 * margin, width = image.width - 2 * margin;
        const int64_t value = output.dtype == UF_FLOAT32 ? 4 : 1;
        if (input_.ConsumeBool()) {
            output.row_stride_bytes = value * input_.ConsumeIntegralInRange<int64_t>(-60, 60);
            output.image_stride_bytes = value * input_.ConsumeIntegralInRange<int64_t>(-3000, 3000);
        }
        const int64_t line = or_else(output.row_stride_bytes, width * value);
        target = Block({{count, or_else(output.image_stride_bytes, height * line)}, {height, line}, {width, value}},
                       value, 1 << 20);
        output.data = target.first();
        output.size_bytes = input_.ConsumeBool() ? target.behind() : 0;
        return source.first() != nullptr && target.first() != nullptr;
    }

    void segment() {
        uf_image image;
        uf_output output;
        Block source({}, 1, 1), target({}, 1, 1);
        const uf_run_options options = run_options();
        if (images(image, output, source, target, 0))
            checked(uf_segment(engine(), &image, input_.ConsumeBool() ? &options : nullptr, &output));
    }

    void create_context() {
        uf_context *&place = contexts_[input_.ConsumeIntegralInRange<size_t>(0, contexts_.size() - 1)];
        uf_context_destroy(place);
        const int32_t count = input_.ConsumeIntegralInRange(-1, 4), height = side(), width = side();
        if (int64_t{height} * width > 1 << 16)
            return; // memory of that size is what was asked for
        checked(uf_context_create(engine(), count, height, width, &place));
    }

    void enqueue() {
        uf_image image;
        uf_output output;
        Block source({}, 1, 1), target({}, 1, 1);
        uf_context *context = contexts_[input_.ConsumeIntegralInRange<size_t>(0, contexts_.size() - 1)];
        if (images(image, output, source, target, 0))
            checked(uf_enqueue(context, &image, number(), &output,
                               input_.ConsumeIntegralInRange(0, 15) == 0 ? this : nullptr));
    }

    void rest() {
        switch (input_.ConsumeIntegralInRange(0, 3)) {
        case 0:
            (void)std::strlen(uf_status_name(static_cast<uf_status>(edge<int32_t>() & 0xF)));
            break;
        case 1:
            checked(uf_engine_tune(engine(), edge<int32_t>(), side(), side(), text()));
            break;
        default: { // with too little room, as a profile takes a second
            uf_op_time time = {};
            time.struct_size = struct_size(sizeof time);
            checked(uf_engine_profile(engine(), 1, 0, 0, &time, input_.ConsumeIntegralInRange(-1, 1), nullptr));
        }
        }
    }

    FuzzedDataProvider input_;
    const std::vector<char> &file_;
    std::vector<uf_engine *> engines_{4, nullptr};
    std::vector<uf_context *> contexts_{4, nullptr};
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const std::vector<char> *const file = new std::vector<char>(read_file(ENGINE_FILE));
    static const Witness *const witness = new Witness;
    Program(data, size, *file).run();
    witness->check();
    return 0;
}
