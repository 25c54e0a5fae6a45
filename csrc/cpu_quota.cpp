#include "cpu_quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

namespace uf {

int processors_of_quota(const std::string &folder) {
    double quota = 0, period = 0;
    std::ifstream limits(folder + "/cpu.max"); // version 2: "max 100000" or "150000 100000"
    if (!(limits >> quota >> period)) {
        std::ifstream(folder + "/cpu/cpu.cfs_quota_us") >> quota; // version 1: -1 or 150000
        std::ifstream(folder + "/cpu/cpu.cfs_period_us") >> period;
    }
    constexpr int no_limit = std::numeric_limits<int>::max();
    if (!(quota > 0 && period > 0))
        return no_limit;
    return static_cast<int>(std::clamp<double>(std::ceil(quota / period), 1, no_limit));
}

} // namespace uf
