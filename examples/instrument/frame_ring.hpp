// The frames between an acquisition thread and the thread that segments them: a ring of buffers that are allocated
// once, without locks and without copies.
#ifndef FRAME_RING_HPP
#define FRAME_RING_HPP

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <stdexcept>
#include <vector>

#include <semaphore.h>

namespace example {

struct GrabbedFrame {
    std::vector<uint8_t> pixels;                   // height x width, rows tight
    uint64_t number = 0;                           // counts exposures; one that is missing was lost
    std::chrono::steady_clock::time_point arrived; // when its last pixel was in memory
};

// For one writer thread and one reader thread.  The reader always takes the newest frame: an old mask is worth nothing
// to a control loop.  The writer never waits: where the reader holds a frame and all other buffers are full, the new
// frame is lost, and both sides count it.
class FrameRing {
  public:
    // At least 2 buffers: the reader holds one while the writer fills others.
    FrameRing(size_t buffers, size_t bytes) : frames_(buffers) {
        if (buffers < 2)
            throw std::invalid_argument("FrameRing: buffers must be at least 2");
        for (GrabbedFrame &frame : frames_)
            frame.pixels.resize(bytes);
        sem_init(&written_one_, 0, 0);
    }
    ~FrameRing() { sem_destroy(&written_one_); }
    FrameRing(const FrameRing &) = delete;
    FrameRing &operator=(const FrameRing &) = delete;

    // Writer: the buffer to fill next, nullptr where none is free.
    GrabbedFrame *begin_write() noexcept {
        const uint64_t written = written_.load(std::memory_order_relaxed);
        if (written - released_.load(std::memory_order_acquire) == frames_.size())
            return nullptr;
        return &frames_[written % frames_.size()];
    }

    // Writer: hands the filled buffer over.
    void end_write() noexcept {
        written_.fetch_add(1, std::memory_order_release);
        sem_post(&written_one_);
    }

    // Writer: no more frames will come.
    void close() noexcept {
        closed_.store(true, std::memory_order_release);
        sem_post(&written_one_);
    }

    bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }

    // Reader: the newest frame, which stays as it is until release(); adds the older ones that are passed over to
    // `skipped`.  nullptr where none comes within `patience`, or where the ring is closed and empty.
    const GrabbedFrame *wait_newest(std::chrono::nanoseconds patience, uint64_t &skipped) noexcept {
        timespec until = {};
        clock_gettime(CLOCK_MONOTONIC, &until);
        const int64_t nanoseconds = until.tv_nsec + patience.count();
        until.tv_sec += static_cast<time_t>(nanoseconds / 1'000'000'000);
        until.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
        while (true) {
            // The semaphore only wakes: what it counts may be older than what is seen here, never newer.
            while (sem_trywait(&written_one_) == 0)
                ;
            const bool last = closed();
            const uint64_t oldest = released_.load(std::memory_order_relaxed);
            const uint64_t written = written_.load(std::memory_order_acquire);
            if (written != oldest) {
                skipped += written - oldest - 1;
                released_.store(written - 1, std::memory_order_release);
                return &frames_[(written - 1) % frames_.size()];
            }
            if (last)
                return nullptr;
            if (sem_clockwait(&written_one_, CLOCK_MONOTONIC, &until) != 0 && errno == ETIMEDOUT)
                return nullptr;
        }
    }

    // Reader: gives the frame's buffer back to the writer.
    void release() noexcept { released_.fetch_add(1, std::memory_order_release); }

  private:
    std::vector<GrabbedFrame> frames_;
    std::atomic<uint64_t> written_{0}, released_{0}; // frames so far; buffers in between are full
    std::atomic<bool> closed_{false};
    sem_t written_one_;
};

} // namespace example

#endif // FRAME_RING_HPP
