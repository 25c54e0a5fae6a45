#include "aligned_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace uf {

AlignedMemory::AlignedMemory(size_t bytes) {
    constexpr size_t cache_line = 64, huge_page = size_t{2} << 20;
    // Large pieces ask for huge pages: a pass over relunet16 in float32 became 1.5 % faster (fewer misses of the TLB),
    // and making its context 4 times faster (fewer page faults).
    const bool large = bytes >= huge_page;
    const size_t alignment = large ? huge_page : cache_line;
    if (bytes > SIZE_MAX - alignment)
        throw std::bad_alloc();
    const size_t size = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<std::byte *>(std::aligned_alloc(alignment, size)));
    if (data_ == nullptr && size > 0)
        throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (large)
        madvise(data_.get(), size, MADV_HUGEPAGE); // a wish; nothing depends on it
#endif
}

void AlignedMemory::Free::operator()(std::byte *data) const { std::free(data); }

void give_back_pages(std::byte *data, size_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), first = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
    if (begin < end)
        madvise(data + (begin - first), end - begin, MADV_DONTNEED);
}

} // namespace uf
