// Every allocation, and every call that reads the file, fails once, between opening an engine and closing it: each
// function works or returns the right status with a message, nothing is left behind, and what was open goes on.
//
//     failing_calls ENGINE.unet                of one channel and one class
//     failing_calls ENGINE.unet --lose-gpu     with kernels, on the fake driver: every allocation fails once while the
//                                              engine goes on with the CPU
#include <dlfcn.h>
#include <signal.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "interpose.h"
#include "process.h"

namespace {

uint8_t pixels[50 * 41], mask[50 * 41], expected[50 * 41], small_mask[16 * 16], small_expected[16 * 16];
const char *path;
long allocations = 0, refusals = 0;
uf_status tolerated; // where a call fails

void accept(uf_status status) {
    if (status == UF_OK)
        return;
    ++refusals;
    if (status != tolerated || std::strlen(uf_last_error()) < 10) {
        std::fprintf(stderr, "%s: %s\n", uf_status_name(status), uf_last_error());
        ++failures;
    }
}

uf_status segment(uf_engine *engine, int32_t tiling, uint8_t *result) {
    uf_image image = {};
    image.struct_size = sizeof image;
    image.data = pixels;
    image.dtype = UF_UINT8;
    image.height = 50;
    image.width = 41;
    uf_run_options options = {};
    options.struct_size = sizeof options;
    options.tiling = tiling;
    uf_output output = {};
    output.struct_size = sizeof output;
    output.data = result;
    output.dtype = UF_UINT8;
    return uf_segment(engine, &image, &options, &output);
}

uf_status open_on(const char *device, int threads, uf_engine **engine) {
    uf_options options = {};
    options.struct_size = sizeof options;
    options.device = device;
    options.precision = "float32";
    options.threads = threads;
    options.keep_warm_ms = 60000; // a thread, which has nothing to do so soon
    return uf_engine_open(path, &options, engine);
}

uf_status enqueue(uf_context *context) {
    uf_image image = {};
    image.struct_size = sizeof image;
    image.data = pixels;
    image.dtype = UF_UINT8;
    image.height = image.width = 16;
    uf_output output = {};
    output.struct_size = sizeof output;
    output.data = small_mask;
    output.dtype = UF_UINT8;
    return uf_enqueue(context, &image, 0.0F, &output, nullptr);
}

// `arm`: called where the calls begin of which one fails.
template <class Arm> void use(int threads, const Arm &arm) {
    arm();
    uf_engine *engine = nullptr;
    accept(open_on("cpu", threads, &engine));
    if (engine == nullptr)
        return;
    for (const int32_t tiling : {UF_TILING_FAST, UF_TILING_EXACT, UF_TILING_RESIZE})
        accept(segment(engine, tiling, mask));
    uf_context *context = nullptr;
    accept(uf_context_create(engine, 2, 16, 16, &context));
    if (context != nullptr)
        accept(enqueue(context));
    // The engine is as well as before.
    interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
    CHECK(segment(engine, UF_TILING_FAST, mask) == UF_OK);
    CHECK(std::memcmp(mask, expected, sizeof mask) == 0);
    uf_context_destroy(context);
    uf_engine_close(engine);
}

// The GPU is lost; the call that fails is one of the first `uf_segment` or `uf_enqueue` after that.
template <class Arm> void lose_gpu(bool in_context, const Arm &arm) {
    static void *const driver = dlopen("libcuda.so.1", RTLD_NOW);
    static const auto lose = reinterpret_cast<void (*)(int, long)>(dlsym(driver, "fake_cuda_lose"));
    uf_engine *engine = nullptr;
    uf_context *context = nullptr;
    CHECK(open_on("auto", 1, &engine) == UF_OK && uf_context_create(engine, 1, 16, 16, &context) == UF_OK);
    uf_info info = {};
    info.struct_size = sizeof info;
    CHECK(uf_engine_info(engine, &info) == UF_OK && std::strcmp(info.device, "cuda:0") == 0);
    CHECK(segment(engine, UF_TILING_FAST, mask) == UF_OK && enqueue(context) == UF_OK);
    lose(0, 0);
    arm();
    accept(in_context ? enqueue(context) : segment(engine, UF_TILING_FAST, mask));
    interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
    // Whatever it said, the CPU does the work now.
    for (int time = 0; time < 2; ++time) {
        std::memset(mask, 7, sizeof mask);
        std::memset(small_mask, 7, sizeof small_mask);
        CHECK(segment(engine, UF_TILING_FAST, mask) == UF_OK && std::memcmp(mask, expected, sizeof mask) == 0);
        CHECK(enqueue(context) == UF_OK && std::memcmp(small_mask, small_expected, sizeof small_mask) == 0);
    }
    uf_context_destroy(context);
    uf_engine_close(engine);
    lose(0, -1);
}

bool takes_signals() {
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    return sigismember(&blocked, SIGINT) == 0;
}

// How many calls of that kind there are, each of which has failed once.  `body(arm)` makes them.
template <class Body> long fail_each(int kind, int manner, const Body &body) {
    const int files = open_files(), tasks = settled_threads();
    for (long number = 1;; ++number) {
        const long alive = interpose_alive();
        body([&] { interpose_arm(kind, number, manner); });
        const bool fired = interpose_fired() != 0;
        interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
        if (interpose_alive() != alive || open_files() != files || running_threads(tasks) != tasks) {
            std::fprintf(stderr, "call %ld of kind %d leaves %ld allocations, %d files, %d threads\n", number, kind,
                         interpose_alive() - alive, open_files() - files, running_threads(tasks) - tasks);
            ++failures;
        }
        CHECK(takes_signals());
        if (!fired)
            return number - 1;
    }
}

// How many calls read the file.
long fail_calls_of_the_cpu() {
    const auto on = [](int threads) { return [threads](const auto &arm) { use(threads, arm); }; };
    for (int threads = 1; threads <= 2; ++threads)
        for (int i = 0; i < 20; ++i)
            use(threads, [] {}); // makes what lives as long as the process, the handles that were closed last among it

    tolerated = UF_ERR_OUT_OF_MEMORY;
    allocations = fail_each(INTERPOSE_MEMORY, INTERPOSE_FAIL, on(1));
    (void)fail_each(INTERPOSE_MEMORY, INTERPOSE_FAIL, on(2));
    CHECK(allocations > 500 && refusals > allocations / 2);

    tolerated = UF_ERR_IO;
    refusals = 0;
    const long reads = fail_each(INTERPOSE_READ, INTERPOSE_FAIL, on(1));
    CHECK(reads >= 3 && refusals == reads); // open, fstat, read
    refusals = 0;
    (void)fail_each(INTERPOSE_READ, INTERPOSE_END, on(1));
    CHECK(refusals >= 1); // a file that becomes shorter while it is read
    refusals = 0;
    (void)fail_each(INTERPOSE_READ, INTERPOSE_SHORT, on(1));
    CHECK(refusals == 2); // open and fstat, but not a read that gives less than was asked for
    return reads;
}

void fail_calls_without_the_gpu() {
    for (int i = 0; i < 20; ++i)
        lose_gpu(i % 2 != 0, [] {});
    tolerated = UF_ERR_OUT_OF_MEMORY;
    for (const bool in_context : {false, true})
        allocations += fail_each(INTERPOSE_MEMORY, INTERPOSE_FAIL, [&](const auto &arm) { lose_gpu(in_context, arm); });
    CHECK(refusals > 50);
}

} // namespace

int main(int count, char **arguments) {
    const bool losing = count == 3 && std::strcmp(arguments[2], "--lose-gpu") == 0;
    if (count != 2 && !losing) {
        std::fprintf(stderr, "usage: failing_calls ENGINE.unet [--lose-gpu]\n");
        return 2;
    }
    path = arguments[1];
    fill_with_noise(pixels, sizeof pixels, 1);
    uf_engine *engine = nullptr;
    uf_context *context = nullptr;
    CHECK(open_on("cpu", 0, &engine) == UF_OK && segment(engine, UF_TILING_FAST, expected) == UF_OK);
    CHECK(uf_context_create(engine, 1, 16, 16, &context) == UF_OK && enqueue(context) == UF_OK);
    std::memcpy(small_expected, small_mask, sizeof small_mask);
    uf_context_destroy(context);
    uf_engine_close(engine);
    const long reads = losing ? 0 : fail_calls_of_the_cpu();
    if (losing)
        fail_calls_without_the_gpu();
    std::printf("%d failures, %ld allocations, %ld reads\n", failures, allocations, reads);
    return failures != 0;
}
