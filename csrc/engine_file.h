// Reads an engine file (docs/design.md, "The engine file") that may come from anyone.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "plan.h"

namespace uf {

struct FileBytes {
    std::unique_ptr<std::byte[]> data;
    size_t size = 0;
};

// The contents of a regular file.  Throws UF_ERR_IO.
FileBytes read_file(const std::string &path);

// The checked plan of an engine file: whatever the bytes are, it either is safe to run or this throws UF_ERR_BAD_FILE
// or UF_ERR_VERSION.  Keeps nothing of `data`, which needs no alignment.  GPU code is read only where it is wanted.
std::shared_ptr<Plan> read_engine_file(const std::byte *data, size_t size, bool with_gpu_code = false);

} // namespace uf
