// Every allocation, and every call that reads the file, fails once, between opening an engine and closing it: each
// function works or returns the right status with a message, nothing is left behind, and what was open goes on.
//
//     failing_calls ENGINE.unet       of one channel and one class
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "interpose.h"
#include "process.h"

namespace {

uint8_t pixels[50 * 41], mask[50 * 41], expected[50 * 41], small_mask[16 * 16];
const char *path;
long refusals = 0;
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

void use(int threads) {
    uf_options options = {};
    options.struct_size = sizeof options;
    options.device = "cpu";
    options.precision = "float32";
    options.threads = threads;
    uf_engine *engine = nullptr;
    accept(uf_engine_open(path, &options, &engine));
    if (engine == nullptr)
        return;
    for (const int32_t tiling : {UF_TILING_FAST, UF_TILING_EXACT, UF_TILING_RESIZE})
        accept(segment(engine, tiling, mask));
    uf_context *context = nullptr;
    accept(uf_context_create(engine, 2, 16, 16, &context));
    if (context != nullptr) {
        uf_image image = {};
        image.struct_size = sizeof image;
        image.data = pixels;
        image.dtype = UF_UINT8;
        image.height = image.width = 16;
        uf_output output = {};
        output.struct_size = sizeof output;
        output.data = small_mask;
        output.dtype = UF_UINT8;
        accept(uf_enqueue(context, &image, 0.0F, &output, nullptr));
    }
    // The engine is as well as before.
    interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
    CHECK(segment(engine, UF_TILING_FAST, mask) == UF_OK);
    CHECK(std::memcmp(mask, expected, sizeof mask) == 0);
    uf_context_destroy(context);
    uf_engine_close(engine);
}

// How many calls of that kind there are, each of which has failed once.
long fail_each(int kind, int manner, int threads) {
    const int files = open_files(), tasks = settled_threads();
    for (long number = 1;; ++number) {
        const long alive = interpose_alive();
        interpose_arm(kind, number, manner);
        use(threads);
        const bool fired = interpose_fired() != 0;
        interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
        if (interpose_alive() != alive || open_files() != files || running_threads(tasks) != tasks) {
            std::fprintf(stderr, "call %ld of kind %d leaves %ld allocations, %d files, %d threads\n", number, kind,
                         interpose_alive() - alive, open_files() - files, running_threads(tasks) - tasks);
            ++failures;
        }
        if (!fired)
            return number - 1;
    }
}

} // namespace

int main(int count, char **arguments) {
    if (count != 2) {
        std::fprintf(stderr, "usage: failing_calls ENGINE.unet\n");
        return 2;
    }
    path = arguments[1];
    fill_with_noise(pixels, sizeof pixels, 1);
    uf_engine *engine = nullptr;
    uf_options options = {};
    options.struct_size = sizeof options;
    options.device = "cpu";
    options.precision = "float32";
    CHECK(uf_engine_open(path, &options, &engine) == UF_OK && segment(engine, UF_TILING_FAST, expected) == UF_OK);
    uf_engine_close(engine);
    for (int threads = 1; threads <= 2; ++threads)
        for (int i = 0; i < 20; ++i)
            use(threads); // makes what lives as long as the process, the handles that were closed last among it

    tolerated = UF_ERR_OUT_OF_MEMORY;
    const long allocations = fail_each(INTERPOSE_MEMORY, INTERPOSE_FAIL, 1);
    (void)fail_each(INTERPOSE_MEMORY, INTERPOSE_FAIL, 2);
    CHECK(allocations > 500 && refusals > allocations / 2);

    tolerated = UF_ERR_IO;
    refusals = 0;
    const long reads = fail_each(INTERPOSE_READ, INTERPOSE_FAIL, 1);
    CHECK(reads >= 3 && refusals == reads); // open, fstat, read
    refusals = 0;
    (void)fail_each(INTERPOSE_READ, INTERPOSE_END, 1);
    CHECK(refusals >= 1); // a file that becomes shorter while it is read
    refusals = 0;
    (void)fail_each(INTERPOSE_READ, INTERPOSE_SHORT, 1);
    CHECK(refusals == 2); // open and fstat, but not a read that gives less than was asked for
    std::printf("%d failures, %ld allocations, %ld reads\n", failures, allocations, reads);
    return failures != 0;
}
