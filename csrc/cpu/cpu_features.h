// Which kernels this CPU runs.
#pragma once

#include <string>

#include "int8_kernels.h"
#include "kernels.h"

namespace uf {

// The best kernels that this build holds and this CPU and operating system run, at most `isa` ("auto": no bound).
// Throws Error(UF_ERR_INVALID_ARGUMENT) for an unknown name, Error(UF_ERR_UNSUPPORTED) for one of another architecture.
const KernelTable &choose_kernels(const std::string &isa);

// The same for int8 ops.  `isa` is one of the names that choose_kernels accepts; each bounds int8 kernels too.
const Int8Kernels &choose_int8_kernels(const std::string &isa);

} // namespace uf
