// Packing int8 weights in words of four channels, for kernels that may not take every word as it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "int8_kernels.h"

namespace uf {

// The weights of as many channels as a word has, or of the `channels` that are left.
template <class Element, int count> void copy_word(const Element *from, int channels, Element (&values)[count]) {
    if (channels >= count)
        std::copy_n(from, count, values); // one instruction, as the count is known
    else
        std::copy_n(from, channels, values);
}

// Packs words, and keeps what is too large in them (Int8Kernels::largest_pair).  Words whose products are summed
// together share a list.
class ExcessWeights {
  public:
    ExcessWeights() = default;
    explicit ExcessWeights(const Int8Kernels &kernels) : largest_pair_(kernels.largest_pair) {}

    // Writes the weights of four channels, which `place` says where to find, to `to`.
    void pack(int8_t (&values)[4], const ExcessWeight &place, std::byte *to) {
        if (largest_pair_ < any_pair)
            take_excess(values, place);
        std::memcpy(to, values, 4);
    }
    // What was packed since the last list, in the order of outputs.
    void end_list();

    ExcessList list(size_t number) const {
        return {weights_.data() + begin_[number], static_cast<int>(begin_[number + 1] - begin_[number])};
    }
    // From number `first` on.
    ExcessLists lists(size_t first) const { return {weights_.data(), begin_.data() + first}; }

  private:
    void take_excess(int8_t (&values)[4], ExcessWeight place);

    int largest_pair_ = any_pair;
    std::vector<ExcessWeight> weights_;
    std::vector<int64_t> begin_{0}; // of each list, and of the next one
};

} // namespace uf
