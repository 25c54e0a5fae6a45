// Times the ops of a pass on the CPU.
#pragma once

#include <chrono>
#include <cstddef>

#include "executor.h"
#include "plan.h"

namespace uf {

// Adds how long it lives to `seconds[op]`; nothing where `seconds` is null.
class OpTimer {
  public:
    OpTimer(double *seconds, size_t op) : place_(seconds == nullptr ? nullptr : seconds + op) {
        if (place_ != nullptr)
            begin_ = Clock::now();
    }
    ~OpTimer() {
        if (place_ != nullptr)
            *place_ += std::chrono::duration<double>(Clock::now() - begin_).count();
    }
    OpTimer(const OpTimer &) = delete;
    OpTimer &operator=(const OpTimer &) = delete;

  private:
    using Clock = std::chrono::steady_clock;
    double *place_;
    Clock::time_point begin_;
};

// Medians over passes of `context` on random uint8 images, for about a second and at least three.  `run`
// of the context writes the seconds of each op to where `op_seconds` points.
Profile profile_passes(Context &context, double *&op_seconds, const Plan &plan);

} // namespace uf
