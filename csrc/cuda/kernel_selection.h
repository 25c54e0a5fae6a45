// Which kernels of a file run on a given GPU.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "cuda/cuda_device.h"
#include "cuda/kernel_table.h"

namespace uf::cuda {

struct Candidate {
    const Kernel *kernel = nullptr;
    const KernelCode *code = nullptr; // the one of the kernel's codes that fits the GPU best
};

// One launch of a pass.
struct Step {
    enum class Role { inner, reads_image, writes_result } role = Role::inner;
    const Op *op = nullptr;
    // Candidates, best guess first, none of the lists empty: one list for inner steps, one per pixel type for those
    // that read the image, one per result type for those that write it (but none for the mask of a network without).
    std::array<std::vector<Candidate>, 3> candidates;

    const std::vector<Candidate> &of(PixelType pixel, ResultType result) const;
};

struct Selection {
    std::string precision; // "fp16", "bf16", "float32", "tf32"
    std::vector<Step> steps;
};

// The launches of one pass.  `precision`: "auto", which is the file's own where the GPU has kernels for it, or a name.
// Throws UF_ERR_UNSUPPORTED, saying why the GPU or its driver cannot run the file and how to change that.
Selection select_kernels(const Plan &plan, const Device &device, const std::string &precision);

} // namespace uf::cuda
