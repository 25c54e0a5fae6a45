// The floating-point mode that results are computed in.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace uf {

// While this lives, its thread computes as a new process does: denormal numbers are kept, roundings go to nearest,
// nothing traps.  So results do not depend on what a program has set for its threads.
class DefaultFloatMode {
  public:
#if defined(__SSE__)
    DefaultFloatMode() : before_(_mm_getcsr()) {
        if ((before_ & ~flags) != usual)
            _mm_setcsr(usual);
    }
    ~DefaultFloatMode() {
        if ((before_ & ~flags) != usual)
            _mm_setcsr(before_);
    }
#elif defined(__aarch64__)
    DefaultFloatMode() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        if (before_ != 0)
            set(0);
    }
    ~DefaultFloatMode() {
        if (before_ != 0)
            set(before_);
    }
#else
    DefaultFloatMode() = default;
    ~DefaultFloatMode() {} // not an unused variable
#endif
    DefaultFloatMode(const DefaultFloatMode &) = delete;
    DefaultFloatMode &operator=(const DefaultFloatMode &) = delete;

  private:
#if defined(__SSE__)
    static constexpr unsigned flags = 0x3F; // what has happened, which is no mode
    static constexpr unsigned usual = 0x1F80;
    const unsigned before_;
#elif defined(__aarch64__)
    static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
    uint64_t before_ = 0;
#endif
};

} // namespace uf
