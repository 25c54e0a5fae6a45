// Which kernels this CPU runs.
#pragma once

#include <string>

#include "kernels.h"

namespace uf {

// The best kernels that this build holds and this CPU and operating system run, at most `isa` ("auto": no bound).
// Throws Error(UF_ERR_INVALID_ARGUMENT) for an unknown name, Error(UF_ERR_UNSUPPORTED) for one of another architecture.
const KernelTable &choose_kernels(const std::string &isa);

} // namespace uf
