#include "excess_weights.h"

#include <algorithm>
#include <cstring>

namespace uf {

void ExcessWeights::take_excess(int8_t (&values)[4], ExcessWeight place) {
    int8_t excess[4] = {};
    for (int pair = 0; pair < 4; pair += 2) {
        const int sum = values[pair] + values[pair + 1];
        // Of different signs two products always fit.
        if ((values[pair] < 0) != (values[pair + 1] < 0) || (sum >= -largest_pair_ && sum <= largest_pair_))
            continue;
        excess[pair] = static_cast<int8_t>(sum < 0 ? sum + largest_pair_ : sum - largest_pair_);
        values[pair] = static_cast<int8_t>(values[pair] - excess[pair]);
    }
    std::memcpy(&place.weights, excess, 4);
    if (place.weights != 0)
        weights_.push_back(place);
}

void ExcessWeights::end_list() {
    std::stable_sort(weights_.begin() + begin_.back(), weights_.end(),
                     [](const ExcessWeight &a, const ExcessWeight &b) { return a.output < b.output; });
    begin_.push_back(static_cast<int64_t>(weights_.size()));
}

} // namespace uf
