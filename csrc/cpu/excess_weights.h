// Packing int8 weights in words of four channels, for kernels that may not take every word as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "int8_kernels.h"

namespace uf {

// Packs words, and keeps what is too large in them (Int8Kernels::largest_pair).  Words whose products are summed
// together share a list.
class ExcessWeights {
  public:
    ExcessWeights() = default;
    explicit ExcessWeights(const Int8Kernels &kernels) : largest_pair_(kernels.largest_pair) {}

    // Writes the weights of four channels, which `place` says where to find, to `to`.
    void pack(int8_t (&values)[4], ExcessWeight place, std::byte *to);
    // What was packed since the last list, in the order of outputs.
    void end_list();

    ExcessList list(size_t number) const {
        const size_t begin = number == 0 ? 0 : ends_[number - 1];
        return {weights_.data() + begin, static_cast<int>(ends_[number] - begin)};
    }

  private:
    int largest_pair_ = any_pair;
    std::vector<ExcessWeight> weights_;
    std::vector<size_t> ends_; // of each list
};

} // namespace uf
