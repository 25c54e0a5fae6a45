// One engine called very often, by several threads, alone and in batches, by uf_segment and uf_enqueue: always the same
// bits, and no more memory, files or threads at the end than at the start.  Then engines opened and closed.
//
//     endurance ENGINE.unet CALLS CYCLES THREADS       of one channel and one class, tile 16
//
// Prints one line of JSON; "hash" is the same for every process, number of threads and call.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "process.h"

namespace {

constexpr int side = 16, most_images = 4;
constexpr size_t image_pixels = size_t{side} * side;
using Values = std::vector<float>;

double resident_bytes() {
    std::ifstream file("/proc/self/statm");
    double total = 0, resident = 0;
    file >> total >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

uf_engine *open_engine(const char *path, int threads) {
    uf_options options = {};
    options.struct_size = sizeof options;
    options.device = "cpu";
    options.precision = "float32";
    options.threads = threads;
    uf_engine *engine = nullptr;
    CHECK(uf_engine_open(path, &options, &engine) == UF_OK);
    return engine;
}

uf_image image_of(const uint8_t *pixels, int count) {
    uf_image image = {};
    image.struct_size = sizeof image;
    image.data = pixels;
    image.dtype = UF_UINT8;
    image.count = count;
    image.height = image.width = side;
    return image;
}

uf_output output_in(Values &values) {
    uf_output output = {};
    output.struct_size = sizeof output;
    output.data = values.data();
    output.dtype = UF_FLOAT32;
    return output;
}

// The images and what each gives; call number i uses some of them in some way.
struct Work {
    std::vector<uint8_t> pixels = std::vector<uint8_t>(most_images * image_pixels);
    Values expected = Values(most_images * image_pixels);

    explicit Work(uf_engine *engine) {
        fill_with_noise(pixels.data(), pixels.size(), 3);
        for (int i = 0; i < most_images; ++i) {
            Values one(image_pixels);
            const uf_image image = image_of(pixels.data() + static_cast<size_t>(i) * image_pixels, 1);
            uf_output output = output_in(one);
            CHECK(uf_segment(engine, &image, nullptr, &output) == UF_OK);
            std::copy(one.begin(), one.end(), expected.begin() + i * static_cast<std::ptrdiff_t>(image_pixels));
        }
    }

    bool right(uf_engine *engine, uf_context *context, long call, Values &values) const {
        const int count = call % 8 == 0 ? most_images : 1;
        const auto first = static_cast<size_t>(count == 1 ? call % most_images : 0);
        std::fill(values.begin(), values.end(), -1.0F);
        const uf_image image = image_of(pixels.data() + first * image_pixels, count);
        uf_output output = output_in(values);
        const uf_status status = call % 3 == 0 ? uf_enqueue(context, &image, 0.0F, &output, nullptr)
                                               : uf_segment(engine, &image, nullptr, &output);
        return status == UF_OK && std::memcmp(values.data(), expected.data() + first * image_pixels,
                                              static_cast<size_t>(count) * image_pixels * sizeof(float)) == 0;
    }

    uint64_t hash() const {
        uint64_t hash = 1469598103934665603U;
        const auto *bytes = reinterpret_cast<const uint8_t *>(expected.data());
        for (size_t i = 0; i < expected.size() * sizeof(float); ++i)
            hash = (hash ^ bytes[i]) * 1099511628211U;
        return hash;
    }
};

// `calls` of them on `callers` threads; how many were wrong.
long call_often(uf_engine *engine, const Work &work, long calls, int callers) {
    std::atomic<long> next{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int caller = 0; caller < callers; ++caller)
        threads.emplace_back([&] {
            Values values(most_images * image_pixels);
            uf_context *context = nullptr;
            CHECK(uf_context_create(engine, most_images, side, side, &context) == UF_OK);
            for (long call; (call = next++) < calls;)
                wrong += !work.right(engine, context, call, values);
            uf_context_destroy(context);
        });
    for (std::thread &thread : threads)
        thread.join();
    return wrong;
}

} // namespace

int main(int count, char **arguments) {
    if (count != 5) {
        std::fprintf(stderr, "usage: endurance ENGINE.unet CALLS CYCLES THREADS\n");
        return 2;
    }
    const char *const path = arguments[1];
    const long calls = std::atol(arguments[2]), cycles = std::atol(arguments[3]);
    const int threads = std::atoi(arguments[4]);
    uf_engine *const engine = open_engine(path, threads);
    const Work work(engine);

    long wrong = call_often(engine, work, 1000, 4) + call_often(engine, work, 1000, 1);
    const int files = open_files(), tasks = settled_threads();
    const double before_calls = resident_bytes();
    wrong += call_often(engine, work, calls, 1);
    const double per_call = (resident_bytes() - before_calls) / static_cast<double>(calls);
    wrong += call_often(engine, work, calls / 4, 4);

    const auto cycle = [&](long times) {
        Values values(most_images * image_pixels);
        for (long i = 0; i < times; ++i) {
            uf_engine *const other = open_engine(path, threads);
            wrong += !work.right(other, nullptr, 1 + 3 * (i % 2), values);
            uf_engine_close(other);
        }
    };
    cycle(200);
    const double before_cycles = resident_bytes();
    cycle(cycles);
    const double per_cycle = (resident_bytes() - before_cycles) / static_cast<double>(cycles);
    std::printf(
        "{\"calls\": %ld, \"cycles\": %ld, \"wrong\": %ld, \"bytes_per_call\": %.3f, \"bytes_per_cycle\": %.3f, "
        "\"files\": %d, \"threads\": %d, \"failures\": %d, \"hash\": \"%016llx\"}\n",
        calls + calls / 4, cycles, wrong, per_call, per_cycle, open_files() - files, running_threads(tasks) - tasks,
        failures, static_cast<unsigned long long>(work.hash()));
    uf_engine_close(engine);
    return failures != 0;
}
