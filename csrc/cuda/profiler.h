// How long each op takes on a GPU, and what that GPU can do at most.
#pragma once

#include "cuda/program.h"
#include "executor.h"

namespace uf::cuda {

// Each op repeated by itself, on random uint8 images in device memory.  Throws what the driver reports.
Profile profile(const Program &program, const PassShape &shape);

} // namespace uf::cuda
