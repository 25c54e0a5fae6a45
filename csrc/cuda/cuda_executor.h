// Runs a plan on an NVIDIA GPU: one CUDA graph of the kernels that came with the engine file.
#pragma once

#include <memory>
#include <string>

#include "executor.h"

namespace uf {

// `device`: "cuda" (the first GPU that can run the file) or "cuda:N".  `precision`: "auto", "fp16", "bf16" or
// "float32".  Loads the code and the weights.  Throws uf::Error: UF_ERR_UNSUPPORTED with the reason where the machine
// has no such GPU or the file nothing that it can run; UF_ERR_INVALID_ARGUMENT for another `device`; UF_ERR_DEVICE,
// UF_ERR_DEVICE_LOST, UF_ERR_OUT_OF_MEMORY, UF_ERR_BAD_FILE as the driver reports.
std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<const Plan> plan, const std::string &device,
                                             const std::string &precision);

} // namespace uf
