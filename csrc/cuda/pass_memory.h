// What the kernels of one pass share on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/program.h"
#include "executor.h"

namespace uf::cuda {

// Addresses in one allocation, each a multiple of 256 bytes.
struct PassMemory {
    DeviceMemory memory;
    size_t bytes = 0;
    std::vector<CUdeviceptr> slots;
    CUdeviceptr zeroed = 0, scratch = 0; // for the most that a loaded candidate asks for
    size_t zeroed_bytes = 0;
    CUdeviceptr image = 0, result = 0; // staging: pixels and probabilities in float32 fit
    CUdeviceptr transforms = 0;        // float32 (N, 2, 4): scale and shift of every image
};

constexpr int64_t transform_bytes = sizeof(PixelTransform);

// Bytes of the pixels of a whole pass, tight, and of its results in float32.
int64_t image_bytes(const Plan &plan, const PassShape &shape, PixelType type);
int64_t probability_bytes(const Plan &plan, const PassShape &shape);

// Hands out aligned ranges of one allocation, whose size is known at the end.
class Ranges {
  public:
    size_t take(int64_t bytes);
    size_t bytes() const { return static_cast<size_t>(bytes_); }

  private:
    int64_t bytes_ = 0;
};

// The device's context must be current.  Throws UF_ERR_INVALID_ARGUMENT for a shape that the kernels cannot address.
PassMemory allocate_pass_memory(const Program &program, const PassShape &shape);

} // namespace uf::cuda
