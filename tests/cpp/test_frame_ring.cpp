// FrameRing and LatencyLog of the examples; also under ThreadSanitizer, AddressSanitizer and UBSan.
#include <algorithm>
#include <chrono>
#include <thread>

#include "../../examples/common/latency_log.hpp"
#include "../../examples/instrument/frame_ring.hpp"
#include "../c/check.h"

using namespace std::chrono_literals;

static void test_percentiles() {
    example::LatencyLog log(100);
    CHECK(log.percentiles({0.5, 1.0}) == std::vector<double>({0.0, 0.0}));
    for (int i = 0; i < 1000; ++i) // the last hundred are 1 to 100 ms, in no order
        log.add(std::chrono::milliseconds(i < 900 ? 7777 : i * 37 % 100 + 1));
    CHECK(log.added() == 1000);
    CHECK(log.percentiles({0.0, 0.5, 0.99, 0.991, 1.0}) == std::vector<double>({1, 50, 99, 100, 100}));
    CHECK(log.summary() == "p50 50.000  p90 90.000  p99 99.000  p99.9 100.000  max 100.000");
}

static void test_one_thread() {
    example::FrameRing ring(3, 8);
    uint64_t skipped = 0;
    CHECK(ring.wait_newest(1ms, skipped) == nullptr);
    const auto write = [&ring](uint64_t number) {
        example::GrabbedFrame *frame = ring.begin_write();
        if (frame == nullptr)
            return false;
        frame->number = number;
        ring.end_write();
        return true;
    };
    CHECK(write(0) && write(1) && write(2) && !write(3)); // no buffer is free
    const example::GrabbedFrame *held = ring.wait_newest(1s, skipped);
    CHECK(held != nullptr && held->number == 2 && skipped == 2);
    CHECK(write(4) && write(5) && !write(6)); // the held one is not written to
    CHECK(held->number == 2);
    ring.release();
    ring.close();
    held = ring.wait_newest(0ms, skipped);
    CHECK(held != nullptr && held->number == 5 && skipped == 3); // a closed ring still gives what it has
    ring.release();
    CHECK(ring.closed() && ring.wait_newest(10s, skipped) == nullptr);
    const auto refused = [] {
        try {
            example::FrameRing one(1, 8);
            return false;
        } catch (const std::invalid_argument &) {
            return true;
        }
    };
    CHECK(refused());
}

// No frame is torn, none comes twice or late, and each is segmented, skipped or lost.
static void test_two_threads(size_t buffers, std::chrono::microseconds work) {
    constexpr uint64_t frames = 20000;
    example::FrameRing ring(buffers, 4096);
    uint64_t lost = 0, skipped = 0, taken = 0;
    std::thread writer([&] {
        for (uint64_t number = 1; number <= frames; ++number) {
            example::GrabbedFrame *frame = ring.begin_write();
            if (frame == nullptr) {
                ++lost;
                std::this_thread::yield();
                continue;
            }
            frame->number = number;
            std::fill(frame->pixels.begin(), frame->pixels.end(), static_cast<uint8_t>(number));
            ring.end_write();
        }
        ring.close();
    });
    uint64_t last = 0;
    while (const example::GrabbedFrame *frame = ring.wait_newest(20s, skipped)) {
        std::this_thread::sleep_for(work);
        const auto whole = static_cast<size_t>(
            std::count(frame->pixels.begin(), frame->pixels.end(), static_cast<uint8_t>(frame->number)));
        if (frame->number <= last || whole != frame->pixels.size()) {
            CHECK(frame->number > last);
            CHECK(whole == frame->pixels.size());
            break;
        }
        last = frame->number;
        ++taken;
        ring.release();
    }
    writer.join();
    CHECK(taken > 0 && taken + skipped + lost == frames);
}

int main() {
    test_percentiles();
    test_one_thread();
    test_two_threads(2, 0us);
    test_two_threads(5, 0us);
    test_two_threads(3, 100us);
    return failures != 0;
}
