// What an executor (CPU, CPU reference, CUDA) offers to the engine: packed weights, and contexts that run one pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "error.h"
#include "plan.h"

namespace uf {

enum class PixelType { uint8, uint16, float32 };

// One image of the pass: strides in bytes, any sign.  Bounds were checked by the engine.
struct ImageView {
    const std::byte *data = nullptr;
    PixelType type = PixelType::uint8;
    int64_t row_stride = 0, pixel_stride = 0, channel_stride = 0;
    bool on_device = false; // `data` is memory of the GPU that the executor runs on
};

// normalised = pixel * scale[c] + shift[c], with pixel as stored (0..255, 0..65535 or a float).  The engine works both
// out of the file's normalisation, max_value and, for "standardise", the statistics of the whole image.
struct PixelTransform {
    float scale[4] = {1, 1, 1, 1};
    float shift[4] = {0, 0, 0, 0};
};

enum class ResultType { mask, probability };

struct OutputView {
    std::byte *data = nullptr;
    ResultType type = ResultType::mask;
    int64_t row_stride = 0; // bytes; pixels and channels are tight
    bool on_device = false;
};

struct PassShape {
    int count = 1, height = 0, width = 0;
};

// One pass at a time.  Owns its arena; `run` allocates nothing.
class Context {
  public:
    virtual ~Context() = default;
    // Runs `count` <= shape().count images of the context's height and width.  `logit_threshold`: for sigmoid masks, a
    // pixel is 255 where its logit is greater.  `stream`: CUstream or null.  Throws uf::Error.
    virtual void run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                     const OutputView *outputs, void *stream) = 0;
    virtual PassShape shape() const = 0;
};

// Immutable after construction; any thread may make contexts.
class Executor {
  public:
    virtual ~Executor() = default;
    virtual std::unique_ptr<Context> make_context(const PassShape &shape) const = 0;
    // Throws unless `data`, of the caller's `argument`, is memory that views with `on_device` may name.
    virtual void check_device_memory(const std::byte *, const char *argument) const {
        throw Error(UF_ERR_UNSUPPORTED, std::string(argument) + ".memory is UF_MEMORY_CUDA, but this engine runs on " +
                                            device() + "; copy to the host");
    }
    // Copies between host memory and memory that has passed that check, or within either; done on return.
    virtual void copy(std::byte *target, const std::byte *source, size_t bytes) const {
        std::memcpy(target, source, bytes);
    }
    virtual std::string device() const = 0;    // "cpu", "cpu-reference", "cuda:0"
    virtual std::string precision() const = 0; // "float32", "bf16", "fp16"
    virtual std::string isa() const = 0;       // "portable", "avx2", "avx512", "avx512_bf16", "neon"; "" on a GPU
};

} // namespace uf
