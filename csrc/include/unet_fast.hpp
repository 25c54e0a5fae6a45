// unet_fast from C++17: a header-only face over unet_fast.h, with exceptions instead of statuses.
//
//     unet_fast::Engine engine("cells.unet");
//     std::vector<uint8_t> mask = engine.segment(unet_fast::view(pixels, height, width));
//
// Link with -lunet_fast.  Engine and Context are move-only owners; any number of threads may use one Engine, a Context
// serves one call at a time.  All that unet_fast.h says about sizes, strides and memory holds here.
#ifndef UNET_FAST_HPP
#define UNET_FAST_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "unet_fast.h"

namespace unet_fast {

// What any call of this header throws; `what()` says what was wrong, what is accepted and how to fix it.
class Error : public std::runtime_error {
  public:
    Error(uf_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    uf_status status() const noexcept { return status_; }

  private:
    uf_status status_;
};

inline void check(uf_status status) {
    if (status != UF_OK)
        throw Error(status, uf_last_error());
}

// How an engine is opened; see uf_options.
struct Options {
    std::string device = "auto", precision = "auto", cpu_isa = "auto";
    int threads = 0;
    bool refuse_embedded_code = false;
    std::string thread_affinity = ""; // empty: where the opening thread may run
    int thread_priority = 0;
    int keep_warm_ms = 0;
};

// How one call treats its image; see uf_run_options.
struct RunOptions {
    uf_tiling tiling = UF_TILING_FAST;
    int tile = 0, overlap = 0;
    float threshold = 0.0F;
};

namespace detail {

template <class Pixel> constexpr int32_t dtype() {
    using Value = std::remove_const_t<Pixel>;
    static_assert(std::is_same_v<Value, uint8_t> || std::is_same_v<Value, uint16_t> || std::is_same_v<Value, float>,
                  "pixels are uint8_t, uint16_t or float");
    return std::is_same_v<Value, uint8_t> ? UF_UINT8 : std::is_same_v<Value, uint16_t> ? UF_UINT16 : UF_FLOAT32;
}

inline uf_run_options run_options(const RunOptions &options) {
    uf_run_options result = {};
    result.struct_size = sizeof result;
    result.tiling = options.tiling;
    result.tile = options.tile;
    result.overlap = options.overlap;
    result.threshold = options.threshold;
    return result;
}

} // namespace detail

// Host pixels as a uf_image: `count` images of height x width, channels interleaved and rows tight.  Set strides,
// max_value or memory on the result where that is not so.  Nothing is copied: the pixels must outlive the view.
template <class Pixel>
uf_image view(const Pixel *pixels, int height, int width, int channels = 0, int count = 1) noexcept {
    uf_image image = {};
    image.struct_size = sizeof image;
    image.data = pixels;
    image.dtype = detail::dtype<Pixel>();
    image.count = count;
    image.height = height;
    image.width = width;
    image.channels = channels;
    return image;
}

// The same for a vector, which must hold at least as many pixels; std::invalid_argument otherwise.
template <class Pixel>
uf_image view(const std::vector<Pixel> &pixels, int height, int width, int channels = 1, int count = 1) {
    if (height < 1 || width < 1 || channels < 1 || count < 1 ||
        pixels.size() / static_cast<size_t>(height) / static_cast<size_t>(width) / static_cast<size_t>(channels) <
            static_cast<size_t>(count))
        throw std::invalid_argument("unet_fast::view: " + std::to_string(pixels.size()) + " pixels are too few for " +
                                    std::to_string(count) + " x " + std::to_string(height) + " x " +
                                    std::to_string(width) + " x " + std::to_string(channels));
    return view(pixels.data(), height, width, channels, count);
}

// Host pixels in one of the usual encodings, as "bgr8"; see uf_image_describe.
inline uf_image describe(const void *pixels, const std::string &encoding, int height, int width,
                         int64_t row_stride_bytes = 0) {
    uf_image image = {};
    image.struct_size = sizeof image;
    check(uf_image_describe(&image, pixels, encoding.c_str(), height, width, row_stride_bytes));
    return image;
}

// Host memory for a result, rows tight: uint8_t for masks, float for probabilities.
template <class Value> uf_output output(Value *values) noexcept {
    static_assert(!std::is_same_v<Value, uint16_t>, "results are uint8_t masks or float probabilities");
    uf_output result = {};
    result.struct_size = sizeof result;
    result.data = values;
    result.dtype = detail::dtype<Value>();
    return result;
}

// Memory for one pass over at most `count` images of height x width, so that `enqueue` allocates nothing.  Made by
// Engine::context; it may outlive its engine.
class Context {
  public:
    // See uf_enqueue.
    void enqueue(const uf_image &image, uf_output &result, float threshold = 0.0F, void *cuda_stream = nullptr) {
        check(uf_enqueue(handle_.get(), &image, threshold, &result, cuda_stream));
    }
    uf_context *handle() const noexcept { return handle_.get(); }

  private:
    friend class Engine;
    struct Destroy {
        void operator()(uf_context *context) const noexcept { uf_context_destroy(context); }
    };
    explicit Context(uf_context *context) noexcept : handle_(context) {}
    std::unique_ptr<uf_context, Destroy> handle_;
};

// A frozen network, ready to run.
class Engine {
  public:
    explicit Engine(const std::string &path, const Options &options = {}) {
        const uf_options given = c_options(options);
        uf_engine *engine = nullptr;
        check(uf_engine_open(path.c_str(), &given, &engine));
        handle_.reset(engine);
    }

    // From memory, which may be freed after the call.
    Engine(const void *data, size_t size_bytes, const Options &options = {}) {
        const uf_options given = c_options(options);
        uf_engine *engine = nullptr;
        check(uf_engine_open_memory(data, size_bytes, &given, &engine));
        handle_.reset(engine);
    }

    // False once its GPU was lost; see uf_engine_healthy.
    bool healthy() const noexcept { return uf_engine_healthy(handle_.get()) != 0; }

    // The strings live as long as the engine.
    uf_info info() const {
        uf_info result = {};
        result.struct_size = sizeof result;
        check(uf_engine_info(handle_.get(), &result));
        return result;
    }

    // Into memory of the caller; see uf_segment.
    void run(const uf_image &image, uf_output &result, const RunOptions &options = {}) const {
        const uf_run_options given = detail::run_options(options);
        check(uf_segment(handle_.get(), &image, &given, &result));
    }

    // The masks, count x height x width: 0 or 255 for one class, else class indices.
    std::vector<uint8_t> segment(const uf_image &image, const RunOptions &options = {}) const {
        return result<uint8_t>(image, options, 1);
    }

    // The probabilities, count x height x width x output channels.
    std::vector<float> probability(const uf_image &image, const RunOptions &options = {}) const {
        return result<float>(image, options, static_cast<size_t>(info().output_channels));
    }

    // See uf_context_create; 0 means 1 image, or the trained size.
    Context context(int count = 0, int height = 0, int width = 0) const {
        uf_context *context = nullptr;
        check(uf_context_create(handle_.get(), count, height, width, &context));
        return Context(context);
    }

    // See uf_engine_tune; an empty path is the user's cache.
    void tune(int count = 0, int height = 0, int width = 0, const std::string &path = "") const {
        check(uf_engine_tune(handle_.get(), count, height, width, path.empty() ? nullptr : path.c_str()));
    }

    // See uf_engine_profile.
    std::vector<uf_op_time> profile(uf_profile &whole, int count = 0, int height = 0, int width = 0) const {
        std::vector<uf_op_time> ops(static_cast<size_t>(info().op_count));
        for (uf_op_time &op : ops)
            op.struct_size = sizeof op;
        whole = {};
        whole.struct_size = sizeof whole;
        check(uf_engine_profile(handle_.get(), count, height, width, ops.data(), static_cast<int32_t>(ops.size()),
                                &whole));
        return ops;
    }

    uf_engine *handle() const noexcept { return handle_.get(); }

  private:
    struct Close {
        void operator()(uf_engine *engine) const noexcept { uf_engine_close(engine); }
    };

    static uf_options c_options(const Options &options) noexcept {
        uf_options result = {};
        result.struct_size = sizeof result;
        result.device = options.device.c_str();
        result.precision = options.precision.c_str();
        result.cpu_isa = options.cpu_isa.c_str();
        result.threads = options.threads;
        result.refuse_embedded_code = options.refuse_embedded_code ? 1 : 0;
        result.thread_affinity = options.thread_affinity.empty() ? nullptr : options.thread_affinity.c_str();
        result.thread_priority = options.thread_priority;
        result.keep_warm_ms = options.keep_warm_ms;
        return result;
    }

    template <class Value>
    std::vector<Value> result(const uf_image &image, const RunOptions &options, size_t channels) const {
        const uf_run_options given = detail::run_options(options);
        int32_t height = 0, width = 0;
        check(uf_output_size(handle_.get(), image.height, image.width, &given, &height, &width));
        const size_t count = image.count > 1 ? static_cast<size_t>(image.count) : 1;
        std::vector<Value> values(count * static_cast<size_t>(height) * static_cast<size_t>(width) * channels);
        uf_output to = output(values.data());
        check(uf_segment(handle_.get(), &image, &given, &to));
        return values;
    }

    std::unique_ptr<uf_engine, Close> handle_;
};

} // namespace unet_fast

#endif // UNET_FAST_HPP
