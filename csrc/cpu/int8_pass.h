// The part of the CPU executor that keeps tensors in uint8: int8 ops, the stem that feeds them, and what converts
// between them and the ops that stay in floating point.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "activations.h"
#include "executor.h"
#include "pass.h"
#include "plan.h"
#include "plane_convolution.h"
#include "plane_winograd.h"
#include "planes.h"
#include "thread_pool.h"

namespace uf {

// The ops of a plan that read or write uint8, prepared once and shared by all contexts.
class Int8Program {
  public:
    Int8Program(const Plan &plan, const std::string &isa);
    // Whether the op is run here; all others neither read nor write uint8.
    static bool runs(const Op &op) { return op.int8 || op.output_scale > 0.0F || op.kind == OpKind::dequantise; }

    const Plan &plan;
    const Int8Kernels &kernels;
    std::vector<std::optional<PlaneConvolution>> convolutions; // per op: one of these two, or neither
    std::vector<std::optional<PlaneWinograd>> winograd;
};

// Its tensors for images of one shape.
class Int8Buffers {
  public:
    // `halos`: per buffer, the zero pixels that its readers need.
    Int8Buffers(const Int8Program &program, const PassShape &shape, const std::vector<int> &halos);

    // What memory it needs, and where it gets it, aligned to a cache line.
    size_t buffer_bytes(size_t buffer) const;
    size_t image_bytes() const;   // 0 without a stem that writes uint8
    size_t scratch_bytes() const; // per worker
    void place_buffer(size_t buffer, std::byte *memory);
    void place_image(std::byte *memory);

    // Runs op number `index`.  `activations`: the buffers in floating point.  Worker w has scratch + w * scratch_size.
    void run(size_t index, const Pass &pass, const Activations *activations, ThreadPool &pool, std::byte *scratch,
             size_t scratch_size) const;

  private:
    size_t head_scratch_bytes() const;
    void convolve(const Op &op, const PlaneConvolution &convolution, int count, ThreadPool &pool) const;
    void convolve(const Op &op, const PlaneWinograd &convolution, int count, ThreadPool &pool, std::byte *scratch,
                  size_t scratch_size) const;
    void finish_plane(const Planes &to, const Planes *pooled, int64_t image, int64_t plane, int64_t begin,
                      int64_t end) const;
    void head(const Op &op, const PlaneConvolution &convolution, const Pass &pass, ThreadPool &pool, std::byte *scratch,
              size_t scratch_size) const;
    void normalise(const Pass &pass, ThreadPool &pool) const;
    void quantise(const Op &op, const Activations &from, int count, ThreadPool &pool) const;
    void dequantise(const Op &op, const Activations &to, int count, ThreadPool &pool) const;
    size_t bytes_of(const Planes &planes) const;

    const Int8Program &program_;
    PassShape shape_;
    std::vector<Planes> planes_; // per buffer of the plan; of float buffers only a shape
    Planes image_;               // normalised, float32, for the stem
};

} // namespace uf
