// instrument ENGINE.unet [options]: a mask of each frame before the next one comes.
//
// What it shows: the loop of an instrument that must act on what it sees.  An acquisition thread takes frames from a
// (simulated) frame grabber into a ring of buffers; this thread segments the newest one in a context made beforehand,
// measures the mask, and acts on it only if the deadline is kept: after a miss the last decision stands.  From the
// first frame on nothing is allocated and no file is touched.  At the end it says how many frames were late, passed
// over or lost, and the percentiles of the time from a frame in memory to the decision.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include <getopt.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unet_fast.hpp>

#include "../common/latency_log.hpp"
#include "frame_ring.hpp"
#include "simulated_camera.hpp"

namespace {

using example::Clock;

constexpr const char *usage =
    "usage: instrument ENGINE.unet [options]\n"
    "  --images FOLDER   8-bit PGM pictures of one size that the camera sees in turn; default: drawn ones\n"
    "  --rate HZ         frames per second; default 30\n"
    "  --frames N        how many; default 300\n"
    "  --deadline MS     from a frame in memory to the decision; default: the time between frames\n"
    "  --buffers N       of the ring; default 4\n"
    "  --threads N       CPU threads of the engine; default: one per physical core\n"
    "  --realtime N      lock memory, and run under SCHED_FIFO with priority N (acquisition: N + 1)\n"
    "  --save FOLDER     after the run, write the last mask of each picture as FOLDER/NAME.pgm\n";

struct Arguments {
    std::string engine, images, save;
    double rate = 30.0, deadline_ms = 0.0;
    long frames = 300, buffers = 4, threads = 0, realtime = 0;
};

double to_number(const char *option, double least, double most) {
    char *end = nullptr;
    const double value = std::strtod(optarg, &end);
    if (end == optarg || *end != '\0' || !(value >= least && value <= most))
        throw std::invalid_argument(std::string(option) + " is '" + optarg + "', accepted are " +
                                    std::to_string(least) + " to " + std::to_string(most));
    return value;
}

Arguments parsed(int count, char **values) {
    static const option options[] = {{"images", required_argument, nullptr, 'i'},
                                     {"rate", required_argument, nullptr, 'r'},
                                     {"frames", required_argument, nullptr, 'f'},
                                     {"deadline", required_argument, nullptr, 'd'},
                                     {"buffers", required_argument, nullptr, 'b'},
                                     {"threads", required_argument, nullptr, 't'},
                                     {"realtime", required_argument, nullptr, 'p'},
                                     {"save", required_argument, nullptr, 's'},
                                     {}};
    Arguments arguments;
    int given = 0;
    while ((given = getopt_long(count, values, "", options, nullptr)) != -1) {
        switch (given) {
        case 'i':
            arguments.images = optarg;
            break;
        case 'r':
            arguments.rate = to_number("--rate", 0.01, 1e5);
            break;
        case 'f':
            arguments.frames = static_cast<long>(to_number("--frames", 1, 1e7));
            break;
        case 'd':
            arguments.deadline_ms = to_number("--deadline", 0.001, 1e6);
            break;
        case 'b':
            arguments.buffers = static_cast<long>(to_number("--buffers", 2, 1024));
            break;
        case 't':
            arguments.threads = static_cast<long>(to_number("--threads", 1, 1024));
            break;
        case 'p':
            arguments.realtime = static_cast<long>(to_number("--realtime", 1, 98));
            break;
        case 's':
            arguments.save = optarg;
            break;
        default:
            throw std::invalid_argument(usage);
        }
    }
    if (count - optind != 1)
        throw std::invalid_argument(usage);
    arguments.engine = values[optind];
    return arguments;
}

// The priority of this thread and of those that it starts.  Throws where the process has no right to it.
void set_priority(long priority) {
    sched_param parameters = {};
    parameters.sched_priority = static_cast<int>(priority);
    const int error = pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters);
    if (error != 0)
        throw std::runtime_error(std::string("no real-time priority (see ulimit -r): ") + std::strerror(error));
}

// The frame grabber: copies pictures into the ring, one each period, like a card that writes by DMA.
class Acquisition {
  public:
    Acquisition(const example::Scene &scene, example::FrameRing &ring, Clock::duration period, long frames)
        : thread_([this, &scene, &ring, period, frames] { run(scene, ring, period, frames); }) {}
    ~Acquisition() {
        stop_ = true;
        thread_.join();
    }

    uint64_t lost() const noexcept { return lost_; } // no buffer was free

  private:
    void run(const example::Scene &scene, example::FrameRing &ring, Clock::duration period, long frames) {
        Clock::time_point next = Clock::now();
        for (uint64_t number = 0; number < static_cast<uint64_t>(frames) && !stop_; ++number) {
            next += period;
            std::this_thread::sleep_until(next);
            example::GrabbedFrame *frame = ring.begin_write();
            if (frame == nullptr) {
                ++lost_;
                continue;
            }
            const std::vector<uint8_t> &pixels = scene.shown(number).pixels;
            std::memcpy(frame->pixels.data(), pixels.data(), pixels.size());
            frame->number = number;
            frame->arrived = Clock::now();
            ring.end_write();
        }
        ring.close();
    }

    std::atomic<bool> stop_{false};
    std::atomic<uint64_t> lost_{0};
    std::thread thread_; // last: it uses the rest
};

// What the instrument acts on.
double share_of_foreground(const std::vector<uint8_t> &mask) {
    size_t foreground = 0;
    for (const uint8_t pixel : mask)
        foreground += pixel != 0;
    return static_cast<double>(foreground) / static_cast<double>(mask.size());
}

void run(const Arguments &arguments) {
    if (arguments.realtime > 0) {
        if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
            throw std::runtime_error(std::string("cannot lock memory (see ulimit -l): ") + std::strerror(errno));
        set_priority(arguments.realtime); // also that of the engine's threads
    }
    unet_fast::Options options;
    options.threads = static_cast<int>(arguments.threads);
    const unet_fast::Engine engine(arguments.engine, options);
    const uf_info info = engine.info();
    const example::Scene scene = arguments.images.empty() ? example::drawn_scene(info.tile, info.tile, 16)
                                                          : example::scene_from_folder(arguments.images);
    // One pass over the whole frame, whose size must be legal for the network (see uf_info).
    unet_fast::Context context = engine.context(1, scene.height, scene.width);
    int32_t height = 0, width = 0; // smaller than the frame if the network pads nothing
    const uf_run_options one_pass = unet_fast::detail::run_options({UF_TILING_NONE});
    unet_fast::check(uf_output_size(engine.handle(), scene.height, scene.width, &one_pass, &height, &width));

    const auto in_clock = [](double seconds) {
        return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    };
    const Clock::duration period = in_clock(1.0 / arguments.rate);
    const Clock::duration deadline = arguments.deadline_ms > 0 ? in_clock(arguments.deadline_ms / 1e3) : period;
    const auto pixels = static_cast<size_t>(height) * static_cast<size_t>(width);
    std::vector<std::vector<uint8_t>> masks(scene.pictures.size(), std::vector<uint8_t>(pixels));
    example::FrameRing ring(static_cast<size_t>(arguments.buffers), scene.pictures.front().pixels.size());
    example::LatencyLog latencies(static_cast<size_t>(arguments.frames));

    const auto segment = [&](const uint8_t *frame, std::vector<uint8_t> &mask) {
        uf_output output = unet_fast::output(mask.data());
        context.enqueue(unet_fast::view(frame, scene.height, scene.width, 1), output);
    };
    for (const example::Picture &picture : scene.pictures) // starts the threads, touches all memory
        segment(picture.pixels.data(), masks.front());

    uint64_t processed = 0, skipped = 0, missed = 0, last_decided = 0;
    double decision = 0.0;
    if (arguments.realtime > 0)
        set_priority(arguments.realtime + 1); // acquisition interrupts segmentation
    Acquisition camera(scene, ring, period, arguments.frames);
    if (arguments.realtime > 0)
        set_priority(arguments.realtime);
    // Long enough for a fast camera on a machine that is busy with something else.
    const auto patience = std::max<std::chrono::nanoseconds>(period * 10, std::chrono::seconds(1));
    while (const example::GrabbedFrame *frame = ring.wait_newest(patience, skipped)) {
        std::vector<uint8_t> &mask = masks[frame->number % masks.size()];
        segment(frame->pixels.data(), mask);
        const double measured = share_of_foreground(mask);
        const Clock::duration taken = Clock::now() - frame->arrived;
        if (taken <= deadline) {
            decision = measured;
            last_decided = frame->number;
        } else {
            ++missed;
        }
        latencies.add(taken);
        ++processed;
        ring.release();
    }
    if (!ring.closed())
        throw std::runtime_error("no frame for ten periods or a second: the camera has stopped");

    std::printf("%s on %s (%s), frames of %d x %d at %.1f Hz, deadline %.2f ms\n", info.name, info.device,
                info.precision, scene.height, scene.width, arguments.rate,
                std::chrono::duration<double, std::milli>(deadline).count());
    std::printf("frames: %llu segmented, %llu of them too late; %llu passed over for a newer one, %llu lost\n",
                static_cast<unsigned long long>(processed), static_cast<unsigned long long>(missed),
                static_cast<unsigned long long>(skipped), static_cast<unsigned long long>(camera.lost()));
    std::printf("frame to decision, ms: %s\n", latencies.summary().c_str());
    std::printf("last decision: frame %llu, %.2f %% foreground\n", static_cast<unsigned long long>(last_decided),
                100.0 * decision);
    if (arguments.save.empty())
        return;
    std::filesystem::create_directories(arguments.save);
    for (size_t index = 0; index < masks.size(); ++index)
        example::write_pgm(std::filesystem::path(arguments.save) / (scene.pictures[index].name + ".pgm"),
                           masks[index].data(), height, width);
}

} // namespace

int main(int count, char **values) {
    try {
        run(parsed(count, values));
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
