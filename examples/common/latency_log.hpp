// How long many runs took: percentiles in milliseconds.
#ifndef LATENCY_LOG_HPP
#define LATENCY_LOG_HPP

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

namespace example {

using Clock = std::chrono::steady_clock;

// Keeps the durations of the last `capacity` runs.  Its memory is taken at the start: `add` allocates nothing.
class LatencyLog {
  public:
    explicit LatencyLog(size_t capacity) : milliseconds_(std::max<size_t>(capacity, 1)) {}

    void add(Clock::duration duration) noexcept {
        milliseconds_[added_ % milliseconds_.size()] = std::chrono::duration<double, std::milli>(duration).count();
        ++added_;
    }

    // How many were ever added.
    size_t added() const noexcept { return added_; }

    // For each fraction in [0, 1] the smallest duration that so many of the kept ones do not exceed (1: the largest);
    // zeros where there are none.
    std::vector<double> percentiles(const std::vector<double> &fractions) const {
        const size_t kept = std::min(added_, milliseconds_.size());
        std::vector<double> result(fractions.size(), 0.0);
        if (kept == 0)
            return result;
        std::vector<double> sorted(milliseconds_.begin(), milliseconds_.begin() + static_cast<std::ptrdiff_t>(kept));
        std::sort(sorted.begin(), sorted.end());
        for (size_t i = 0; i < fractions.size(); ++i) {
            const auto rank = static_cast<size_t>(std::ceil(fractions[i] * static_cast<double>(kept)));
            result[i] = sorted[std::clamp<size_t>(rank, 1, kept) - 1];
        }
        return result;
    }

    // "p50 5.123  p90 5.400  p99 6.012  p99.9 6.100  max 7.500"
    std::string summary() const {
        const std::vector<double> values = percentiles({0.5, 0.9, 0.99, 0.999, 1.0});
        char text[128];
        std::snprintf(text, sizeof text, "p50 %.3f  p90 %.3f  p99 %.3f  p99.9 %.3f  max %.3f", values[0], values[1],
                      values[2], values[3], values[4]);
        return text;
    }

  private:
    std::vector<double> milliseconds_;
    size_t added_ = 0;
};

} // namespace example

#endif // LATENCY_LOG_HPP
