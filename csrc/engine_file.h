// Reads an engine file (docs/design.md, "The engine file") that may come from anyone.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cpu/aligned_memory.h"
#include "plan.h"

namespace uf {

struct FileBytes {
    AlignedMemory memory;
    size_t size = 0;
    const std::byte *data() const { return memory.data(); }
};

// The contents of a regular file that begins like an engine file.  Throws UF_ERR_IO, UF_ERR_BAD_FILE.
FileBytes read_file(const std::string &path);

// The checked plan of an engine file: whatever the bytes are, it either is safe to run or this throws UF_ERR_BAD_FILE
// or UF_ERR_VERSION.  `data` needs no alignment.  GPU code is read only where it is wanted.  The plan uses the weights
// where they lie and keeps `owner`, whose `data` is; without one it copies them.
std::shared_ptr<Plan> read_engine_file(const std::byte *data, size_t size, bool with_gpu_code = false,
                                       const std::shared_ptr<const void> &owner = nullptr);

// The same of a file that nobody else reads: the memory of a tensor goes back to the system with the last copy of it,
// so that an executor that packs weights one by one never has all of them twice.
std::shared_ptr<Plan> consume_engine_file(const std::shared_ptr<FileBytes> &file, bool with_gpu_code = false);

} // namespace uf
