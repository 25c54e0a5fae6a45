// One pass at a time on a GPU: its memory, and its graphs.
#pragma once

#include <memory>

#include "cuda/program.h"
#include "executor.h"

namespace uf::cuda {

// Throws UF_ERR_INVALID_ARGUMENT for a shape that the kernels cannot address, else what the driver reports.
std::unique_ptr<uf::Context> make_cuda_context(std::shared_ptr<const Program> program, const PassShape &shape);

} // namespace uf::cuda
