// What an executor (CPU, CPU reference, CUDA) offers to the engine: packed weights, and contexts that run one pass.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

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
    // So much of the result is written, from its first row and column; 0: all.  Less only where `on_device`.
    int64_t rows = 0, columns = 0;
};

struct PassShape {
    int count = 1, height = 0, width = 0;
};

// Throws UF_ERR_OUT_OF_MEMORY where a pass needs so much on the host and the machine has less: Linux grants it all the
// same, and kills the process when it is used.
void require_memory(const PassShape &shape, double bytes);

// One pass at a time.  Owns its arena; `run` allocates nothing.
class Context {
  public:
    virtual ~Context() = default;
    // Runs `count` <= shape().count images of the context's height and width.  `logit_threshold`: for sigmoid masks, a
    // pixel is 255 where its logit is greater.  `stream`: CUstream or null.  Throws uf::Error.
    virtual void run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                     const OutputView *outputs, void *stream) = 0;
    // `run` in two parts: images in host memory have been read when `start_pass` returns, results are there when
    // `finish_pass` does.  Between them the caller is free to do something else.
    virtual void start_pass(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                            const OutputView *outputs) {
        run(images, transforms, count, logit_threshold, outputs, nullptr);
    }
    virtual void finish_pass() {}
    // Host memory from which results need not be copied again: those of a full batch in float32, tight, one after the
    // other.  Null: any memory is as good.
    virtual std::byte *result_staging() { return nullptr; }
    virtual PassShape shape() const = 0;
    // Memory that it holds, on the host and on its device.
    virtual double bytes() const = 0;
    // A pass over black images whose results nobody sees, which brings weights, memory and processors back from a
    // pause; ends within an op once `calls` is not 0.  Nothing on a GPU.
    virtual void warm(const std::atomic<int> &calls) { static_cast<void>(calls); }
};

// How long the ops of a pass take, and what the device can do at most.
struct Profile {
    struct Op {
        const char *kernel = ""; // candidate that runs on a GPU; lives as long as the plan
        double seconds = 0;      // median
    };
    std::vector<Op> ops;                                    // as in the plan
    double pass_seconds = 0;                                // median of the whole pass
    double bytes_per_second = 0, operations_per_second = 0; // 0: not known
    bool operations_measured = false;                       // else from the data sheet
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
    // Memory that views with `on_device` may name, for as long as the result or a copy of it lives; null where there
    // is no such memory.
    virtual std::shared_ptr<std::byte> allocate(size_t) const { return nullptr; }
    // Copies `rows` rows of `bytes` within such memory, which begin at those distances, at least `bytes`; passes that
    // begin afterwards find them.
    virtual void copy_rows(std::byte *target, int64_t target_stride, const std::byte *source, int64_t source_stride,
                           int64_t bytes, int64_t rows) const {
        for (int64_t row = 0; row < rows; ++row)
            copy(target + row * target_stride, source + row * source_stride, static_cast<size_t>(bytes));
    }
    // Measures its kernels one by one.
    virtual Profile profile(const PassShape &) const {
        throw Error(UF_ERR_UNSUPPORTED, device() + " is not made for speed and has no profile; use device cpu or cuda");
    }
    // The same, with the fastest kernels for passes of that shape, which it measures now.  Keeps the choice in the file
    // `path`, empty: the user's cache; `not_kept` says why where that was impossible.
    virtual std::unique_ptr<Executor> tuned(const PassShape &, const std::string &path, std::string &not_kept) const {
        static_cast<void>(path), static_cast<void>(not_kept);
        throw Error(UF_ERR_UNSUPPORTED, "this engine runs on " + device() +
                                            ", which has one kernel for each op and nothing to tune; open it on a GPU "
                                            "(device cuda) whose kernels the file has");
    }
    // False once its device was lost, after which every call fails.
    virtual bool healthy() const { return true; }
    // Passes whose host work and computing can overlap.
    virtual int overlapping_passes() const { return 1; }
    // Where the choice of kernels comes from, one sentence, and its file; "" where there is no choice.
    virtual std::string tuning() const { return ""; }
    virtual std::string tuning_file() const { return ""; }
    virtual std::string device() const = 0;    // "cpu", "cpu-reference", "cuda:0"
    virtual std::string precision() const = 0; // "float32", "bf16", "fp16", "int8"
    // "portable", "avx2", "avx512", "avx512_bf16", "neon", "neon_fp16", "neon_bf16", in int8 also "avx2_vnni",
    // "avx512_vnni", "neon_dotprod", "neon_i8mm"; "" on a GPU.
    virtual std::string isa() const = 0;
};

} // namespace uf
