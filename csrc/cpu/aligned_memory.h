// Memory for vectors.
#pragma once

#include <cstddef>
#include <memory>

namespace uf {

// Uninitialised memory, aligned to a cache line, which is also the longest vector.
class AlignedMemory {
  public:
    AlignedMemory() = default;
    // Throws std::bad_alloc.
    explicit AlignedMemory(size_t bytes);

    std::byte *data() const { return data_.get(); }
    float *floats() const { return reinterpret_cast<float *>(data_.get()); }

  private:
    struct Free {
        void operator()(std::byte *data) const;
    };
    std::unique_ptr<std::byte, Free> data_;
};

// Gives the whole pages among these bytes back to the system, which are lost; they read as zeros from then on.
void give_back_pages(std::byte *data, size_t bytes);

} // namespace uf
