/* The C API from C: what works, and each thing that must be refused.
 *
 *     test_c_api FOLDER     with plain.unet (1 channel, 1 class, tile 32), classes.unet (5 classes), regression.unet,
 *                           rgb.unet (3 channels), valid.unet (margin > 0), bilinear_corners.unet (no exact tiles)
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"

static const char *folder;

static uf_engine *open_engine(const char *name, const char *device) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.unet", folder, name);
    uf_options options = {.struct_size = sizeof options};
    options.device = device;
    options.precision = "float32";
    uf_engine *engine = NULL;
    CHECK(uf_engine_open(path, &options, &engine) == UF_OK);
    if (engine == NULL)
        exit(1);
    return engine;
}

static uf_image grey_image(const void *data, int height, int width) {
    uf_image image = {.struct_size = sizeof image};
    image.data = data;
    image.dtype = UF_UINT8;
    image.height = height;
    image.width = width;
    return image;
}

static uf_output result_in(void *data, int dtype) {
    uf_output output = {.struct_size = sizeof output};
    output.data = data;
    output.dtype = dtype;
    return output;
}

static void test_names(void) {
    CHECK(strcmp(uf_last_error(), "") == 0);
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", UF_VERSION_MAJOR, UF_VERSION_MINOR, UF_VERSION_PATCH);
    CHECK(strcmp(uf_version(), version) == 0);
    CHECK(strcmp(uf_status_name(UF_ERR_BAD_FILE), "UF_ERR_BAD_FILE") == 0);
    CHECK(strcmp(uf_status_name((uf_status)99), "unknown status") == 0);
    for (int status = UF_OK; status <= UF_ERR_INTERNAL; ++status)
        CHECK(strncmp(uf_status_name((uf_status)status), "UF_", 3) == 0);
}

static void test_open(void) {
    char path[4096];
    uf_engine *const nowhere = (uf_engine *)&failures;
    uf_engine *engine = nowhere;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "path is NULL", uf_engine_open(NULL, NULL, &engine));
    CHECK(engine == NULL);
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is NULL", uf_engine_open("x", NULL, NULL));
    engine = nowhere;
    CHECK_FAILS(UF_ERR_IO, "no/such/file.unet: No such file", uf_engine_open("no/such/file.unet", NULL, &engine));
    CHECK(engine == NULL);
    CHECK_FAILS(UF_ERR_IO, "directory", uf_engine_open(folder, NULL, &engine));
    CHECK_FAILS(UF_ERR_IO, "not a regular file", uf_engine_open("/dev/null", NULL, &engine));
    CHECK_FAILS(UF_ERR_IO, "no?such?file", uf_engine_open("no\nsuch\rfile", NULL, &engine)); /* one line */

    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "data is NULL", uf_engine_open_memory(NULL, 0, NULL, &engine));
    CHECK_FAILS(UF_ERR_BAD_FILE, "empty", uf_engine_open_memory("", 0, NULL, &engine));
    CHECK_FAILS(UF_ERR_BAD_FILE, "unet-fast freeze", uf_engine_open_memory("what is this?", 13, NULL, &engine));
    CHECK_FAILS(UF_ERR_BAD_FILE, "checkpoint", uf_engine_open_memory("PK\3\4 and more", 13, NULL, &engine));

    snprintf(path, sizeof path, "%s/plain.unet", folder);
    const struct {
        uf_options options;
        uf_status status;
        const char *text;
    } refused[] = {
#define SET(...)                                                                                                       \
    {                                                                                                                  \
        .struct_size = sizeof(uf_options), __VA_ARGS__                                                                 \
    }
        {SET(.device = "gpu"), UF_ERR_INVALID_ARGUMENT, "'gpu', accepted are auto, cpu"},
        {SET(.precision = "float8"), UF_ERR_INVALID_ARGUMENT, "float8"},
        {SET(.device = "cpu", .precision = "fp16"), UF_ERR_UNSUPPORTED, "fp16"},
        {SET(.device = "cpu-reference", .precision = "bf16"), UF_ERR_UNSUPPORTED, "float32"},
        {SET(.device = "cpu", .cpu_isa = "mmx"), UF_ERR_INVALID_ARGUMENT, "'mmx', accepted are auto, "},
        {SET(.device = "cpu", .cpu_isa = "m\nx"), UF_ERR_INVALID_ARGUMENT, "'m?x'"},
        {SET(.device = "cpu", .cpu_isa = ""), UF_ERR_INVALID_ARGUMENT, "cpu_isa is ''"},
        {SET(.device = "cpu-reference", .cpu_isa = "mmx"), UF_ERR_INVALID_ARGUMENT, "mmx"},
        {SET(.device = "cuda", .cpu_isa = "mmx"), UF_ERR_INVALID_ARGUMENT, "mmx"},
        {SET(.threads = -1), UF_ERR_INVALID_ARGUMENT, "threads is -1"},
        {SET(.threads = 100000), UF_ERR_INVALID_ARGUMENT, "threads is 100000"},
        {SET(.thread_affinity = "1-"), UF_ERR_INVALID_ARGUMENT, "thread_affinity is '1-'"},
        {SET(.thread_affinity = "2-1"), UF_ERR_INVALID_ARGUMENT, "thread_affinity is '2-1'"},
        {SET(.thread_affinity = "0;1"), UF_ERR_INVALID_ARGUMENT, "thread_affinity is '0;1'"},
        {SET(.thread_affinity = "99999999999"), UF_ERR_INVALID_ARGUMENT, "thread_affinity"},
        {SET(.thread_affinity = "1023", .threads = 2), UF_ERR_INVALID_ARGUMENT, "thread_affinity"},
        {SET(.thread_priority = 100), UF_ERR_INVALID_ARGUMENT, "thread_priority is 100"},
        {SET(.thread_priority = -1), UF_ERR_INVALID_ARGUMENT, "thread_priority is -1"},
        {SET(.keep_warm_ms = -1), UF_ERR_INVALID_ARGUMENT, "keep_warm_ms is -1"},
        {SET(.keep_warm_ms = 60001), UF_ERR_INVALID_ARGUMENT, "keep_warm_ms is 60001"},
#undef SET
        {{.struct_size = 8}, UF_ERR_INVALID_ARGUMENT, "options.struct_size is 8"},
        {{.struct_size = (size_t)-1}, UF_ERR_INVALID_ARGUMENT, "options.struct_size is"},
        {{.struct_size = 0}, UF_ERR_INVALID_ARGUMENT, "options.struct_size is 0"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; ++i) {
        engine = nowhere;
        CHECK_FAILS(refused[i].status, refused[i].text, uf_engine_open(path, &refused[i].options, &engine));
        CHECK(engine == NULL);
    }

    /* From memory, at an odd address, which is freed before the engine is used. */
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    fseek(file, 0, SEEK_END);
    const size_t size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(size + 1);
    CHECK(fread(data + 1, 1, size, file) == size);
    fclose(file);
    CHECK_FAILS(UF_ERR_BAD_FILE, "", uf_engine_open_memory(data + 1, size - 1, NULL, &engine));
    struct {
        uf_options options;
        char newer_field[64];
    } newer = {{.struct_size = sizeof newer, .device = "cpu", .precision = "float32", .cpu_isa = "portable"}, ""};
    newer.options.threads = newer.options.refuse_embedded_code = 1;
    CHECK(uf_engine_open_memory(data + 1, size, &newer.options, &engine) == UF_OK);
    free(data);
    uf_info info = {.struct_size = sizeof info};
    CHECK(uf_engine_info(engine, &info) == UF_OK);
    CHECK(strcmp(info.cpu_isa, "portable") == 0 && info.threads == 1);
    uf_engine_close(engine);
    uf_engine_close(NULL);
}

static void test_info(void) {
    uf_engine *engine = open_engine("plain", NULL);
    uf_info info = {.struct_size = sizeof info};
    CHECK(uf_engine_info(engine, &info) == UF_OK);
    CHECK(info.channels == 1 && info.output_channels == 1 && info.output_kind == 0);
    CHECK(info.tile == 32 && info.multiple == 4 && info.remainder == 0 && info.margin == 0 && info.halo > 0);
    CHECK(info.threads >= 1 && info.op_count > 1 && info.threshold == 0.5F);
    CHECK(strcmp(info.name, "plain") == 0 && strcmp(info.precision, "float32") == 0);
    CHECK(strcmp(info.device, "cpu") == 0 && strlen(info.device_reason) > 0);
    CHECK(uf_engine_healthy(engine) == 1 && uf_engine_healthy(NULL) == 0);
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is NULL", uf_engine_info(NULL, &info));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "info is NULL", uf_engine_info(engine, NULL));
    info.struct_size = 4;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "info.struct_size is 4", uf_engine_info(engine, &info));
    uf_engine_close(engine);
}

static void test_output_size(void) {
    uf_engine *plain = open_engine("plain", NULL), *valid = open_engine("valid", NULL);
    uf_info info = {.struct_size = sizeof info};
    CHECK(uf_engine_info(valid, &info) == UF_OK && info.margin > 0);
    int32_t height = 0, width = 0;
    CHECK(uf_output_size(plain, 33, 1, NULL, &height, &width) == UF_OK && height == 33 && width == 1);
    uf_run_options options = {.struct_size = sizeof options};
    CHECK(uf_output_size(valid, 50, 60, &options, &height, &width) == UF_OK && height == 50 && width == 60);
    options.tiling = UF_TILING_NONE;
    CHECK(uf_output_size(valid, info.tile, info.tile + info.multiple, &options, &height, &width) == UF_OK);
    CHECK(height == info.tile - 2 * info.margin && width == height + info.multiple);
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "33 x 32", uf_output_size(plain, 33, 32, &options, &height, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "height is 0", uf_output_size(plain, 0, 32, NULL, &height, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "width is -1", uf_output_size(plain, 32, -1, NULL, &height, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "NULL", uf_output_size(NULL, 32, 32, NULL, &height, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "NULL", uf_output_size(plain, 32, 32, NULL, NULL, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "NULL", uf_output_size(plain, 32, 32, NULL, &height, NULL));
    options.tiling = 9;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "tiling is 9", uf_output_size(plain, 32, 32, &options, &height, &width));
    uf_engine_close(plain);
    uf_engine_close(valid);
}

/* The mask is the probability above the threshold; strides and batches change nothing. */
static void test_segment(void) {
    enum { H = 32, W = 36, N = 3 };
    uf_engine *engine = open_engine("plain", NULL);
    static uint8_t pixels[N][H][W];
    fill_with_noise(pixels, sizeof pixels, 1);
    static float probability[N][H][W];
    static uint8_t mask[N][H][W];
    uf_image image = grey_image(pixels, H, W);
    image.count = N;
    image.channels = 1;
    uf_run_options whole = {.struct_size = sizeof whole};
    whole.tiling = UF_TILING_NONE;
    uf_output output = result_in(probability, UF_FLOAT32);
    memset(probability, 0xFF, sizeof probability); /* NaN */
    CHECK(uf_segment(engine, &image, &whole, &output) == UF_OK);
    output = result_in(mask, UF_UINT8);
    for (int pass = 0; pass < 2; ++pass) {
        whole.threshold = pass == 0 ? 0.0F : 0.3F;
        CHECK(uf_segment(engine, &image, &whole, &output) == UF_OK);
        int different = 0;
        for (int i = 0; i < N * H * W; ++i) {
            const float value = (&probability[0][0][0])[i], threshold = pass == 0 ? 0.5F : 0.3F;
            CHECK(value >= 0.0F && value <= 1.0F);
            if (fabsf(value - threshold) > 1e-6F)
                different += (&mask[0][0][0])[i] != (value > threshold ? 255 : 0);
        }
        CHECK(different == 0);
    }

    /* Each image of the batch alone, from rows in reverse order and pixels apart, to rows with room between them. */
    static uint8_t spread[H][W][3], alone[H][W + 5];
    for (int n = 0; n < N; ++n) {
        for (int y = 0; y < H; ++y)
            for (int x = 0; x < W; ++x)
                spread[H - 1 - y][x][1] = pixels[n][y][x];
        memset(alone, 7, sizeof alone);
        uf_image strided = grey_image(&spread[H - 1][0][1], H, W);
        strided.row_stride_bytes = -(int64_t)sizeof spread[0];
        strided.pixel_stride_bytes = 3;
        output = result_in(alone, UF_UINT8);
        output.row_stride_bytes = sizeof alone[0];
        CHECK(uf_segment(engine, &strided, &whole, &output) == UF_OK);
        for (int y = 0; y < H; ++y) {
            CHECK(memcmp(alone[y], mask[n][y], W) == 0);
            for (int x = W; x < W + 5; ++x)
                CHECK(alone[y][x] == 7);
        }
    }
    uf_engine_close(engine);
}

static void test_every_tiling(void) {
    enum { H = 75, W = 50 };
    static uint8_t pixels[H][W];
    static float result[H][W * 5];
    fill_with_noise(pixels, sizeof pixels, 2);
    const char *names[] = {"plain", "classes", "valid"};
    for (int i = 0; i < 3; ++i) {
        uf_engine *engine = open_engine(names[i], NULL);
        uf_info info = {.struct_size = sizeof info};
        CHECK(uf_engine_info(engine, &info) == UF_OK);
        uf_image image = grey_image(pixels, H, W);
        for (int tiling = UF_TILING_FAST; tiling <= UF_TILING_RESIZE; ++tiling) {
            uf_run_options options = {.struct_size = sizeof options};
            options.tiling = tiling;
            /* With valid padding, tiles of the trained size give little, so that there would be hundreds. */
            if (tiling == UF_TILING_FAST)
                options.tile = info.tile + info.margin / info.multiple * info.multiple;
            memset(result, 0xFF, sizeof result);
            uf_output output = result_in(result, UF_FLOAT32);
            CHECK(uf_segment(engine, &image, &options, &output) == UF_OK);
            for (int y = 0; y < H * W * info.output_channels; ++y)
                CHECK((&result[0][0])[y] >= 0.0F && (&result[0][0])[y] <= 1.0F);
            static uint8_t mask[H][W];
            output = result_in(mask, UF_UINT8);
            CHECK(uf_segment(engine, &image, &options, &output) == UF_OK);
        }
        uf_engine_close(engine);
    }
}

/* Many tiles with their halo are the same as one, but for roundings: Winograd's convolution sums over 4x4 pixels, and
 * at a cut some of them have other neighbours. */
static void test_exact_tiles(void) {
    enum { H = 320, W = 50 };
    static uint8_t pixels[H][W];
    static float result[H][W * 5], whole[H][W * 5];
    fill_with_noise(pixels, sizeof pixels, 2);
    const char *names[] = {"plain", "classes", "valid"};
    uf_image image = grey_image(pixels, H, W);
    uf_run_options options = {.struct_size = sizeof options};
    options.tiling = UF_TILING_EXACT;
    for (int network = 0; network < 3; ++network) {
        uf_engine *engine = open_engine(names[network], NULL);
        uf_info info = {.struct_size = sizeof info};
        CHECK(uf_engine_info(engine, &info) == UF_OK);
        memset(result, 0xFF, sizeof result); /* NaN */
        memset(whole, 0xFF, sizeof whole);
        uf_output output = result_in(whole, UF_FLOAT32);
        options.tile = 0;
        CHECK(uf_segment(engine, &image, &options, &output) == UF_OK);
        output.data = result;
        options.tile = info.minimum + (2 * info.halo / info.multiple + 10) * info.multiple;
        CHECK(options.tile < H + 2 * info.margin); /* so there are several */
        CHECK(uf_segment(engine, &image, &options, &output) == UF_OK);
        int different = 0;
        for (int i = 0; i < H * W * info.output_channels; ++i)
            different += !(fabsf((&result[0][0])[i] - (&whole[0][0])[i]) <= 2e-6F);
        CHECK(different == 0);
        uf_engine_close(engine);
    }
    uf_engine *corners = open_engine("bilinear_corners", NULL);
    uf_output output = result_in(result, UF_FLOAT32);
    options.tile = 0;
    CHECK(uf_segment(corners, &image, &options, &output) == UF_OK); /* one tile is enough */
    options.tile = 32;
    CHECK_FAILS(UF_ERR_UNSUPPORTED, "tiling fast", uf_segment(corners, &image, &options, &output));
    uf_engine_close(corners);
}

static void test_refused_images(void) {
    enum { H = 32, W = 32 };
    static float pixels[H][W], result[H][W];
    for (int i = 0; i < H * W; ++i)
        (&pixels[0][0])[i] = (float)(i % 7) / 7.0F;
    uf_engine *engine = open_engine("plain", NULL);
    uf_image good = grey_image(pixels, H, W);
    good.dtype = UF_FLOAT32;
    uf_output output = result_in(result, UF_FLOAT32);
    CHECK(uf_segment(engine, &good, NULL, &output) == UF_OK);
    uf_image bad;
#define REFUSED(change, text)                                                                                          \
    bad = good;                                                                                                        \
    change;                                                                                                            \
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, text, uf_segment(engine, &bad, NULL, &output))
    REFUSED(bad.struct_size = 8, "image.struct_size is 8");
    REFUSED(bad.data = NULL, "image.data is NULL");
    REFUSED(bad.data = (const char *)pixels + 1, "multiple of 4");
    REFUSED(bad.dtype = 0, "image.dtype is 0");
    REFUSED(bad.memory = 5, "image.memory is 5");
    REFUSED(bad.count = -1, "image.count is -1");
    REFUSED(bad.height = 0, "image.height is 0");
    REFUSED(bad.width = -3, "image.width is -3");
    REFUSED(bad.width = 1 << 30, "image.width");
    REFUSED(bad.channels = 3, "image.channels is 3, this network takes 1");
    REFUSED(bad.row_stride_bytes = 129, "row_stride_bytes is 129");
    REFUSED(bad.row_stride_bytes = INT64_MAX - 3, "stride");
    REFUSED(bad.row_stride_bytes = -(INT64_MAX - 3), "stride");
    REFUSED(bad.pixel_stride_bytes = INT64_MAX - 3, "stride");
    REFUSED(bad.channel_stride_bytes = INT64_MAX - 3, "stride");
    REFUSED((bad.image_stride_bytes = INT64_MAX - 3, bad.count = INT32_MAX), "stride");
    REFUSED((bad.count = INT32_MAX, bad.size_bytes = sizeof pixels), "size_bytes is 4096");
    REFUSED(bad.max_value = -1.0F, "max_value is -1");
    REFUSED(bad.max_value = NAN, "max_value");
    pixels[5][9] = NAN;
    REFUSED((void)0, "row 5, column 9");
    pixels[5][9] = -INFINITY;
    REFUSED((void)0, "row 5, column 9");
    pixels[5][9] = 0.5F;
#undef REFUSED
    bad = good;
    bad.memory = UF_MEMORY_CUDA;
    CHECK_FAILS(UF_ERR_UNSUPPORTED, "UF_MEMORY_CUDA", uf_segment(engine, &bad, NULL, &output));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is NULL", uf_segment(NULL, &good, NULL, &output));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "image is NULL", uf_segment(engine, NULL, NULL, &output));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "output is NULL", uf_segment(engine, &good, NULL, NULL));

    uf_output bad_output;
#define REFUSED(change, text)                                                                                          \
    bad_output = output;                                                                                               \
    change;                                                                                                            \
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, text, uf_segment(engine, &good, NULL, &bad_output))
    REFUSED(bad_output.struct_size = 0, "output.struct_size is 0");
    REFUSED(bad_output.data = NULL, "output.data is NULL");
    REFUSED(bad_output.data = (char *)result + 2, "multiple of 4");
    REFUSED(bad_output.dtype = UF_UINT16, "output.dtype is 2");
    REFUSED(bad_output.row_stride_bytes = W, "row_stride_bytes is 32");
    REFUSED(bad_output.row_stride_bytes = 4 * W + 1, "multiples of 4");
    REFUSED(bad_output.row_stride_bytes = INT64_MAX - 3, "stride");
    REFUSED(bad_output.row_stride_bytes = INT64_MIN, "stride");
#undef REFUSED
    uf_run_options options;
#define REFUSED(change, text)                                                                                          \
    options = (uf_run_options){sizeof options, 0, 0, 0, 0.0F};                                                         \
    change;                                                                                                            \
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, text, uf_segment(engine, &good, &options, &output))
    REFUSED(options.struct_size = 3, "options.struct_size is 3");
    REFUSED(options.tiling = -1, "tiling is -1");
    REFUSED(options.tile = 33, "such as 36");
    REFUSED(options.tile = -4, "tile is -4");
    REFUSED(options.overlap = -1, "overlap is -1");
    REFUSED(options.overlap = 17, "overlap is 17");
    REFUSED(options.threshold = 1.0F, "threshold is 1");
    REFUSED(options.threshold = -0.5F, "threshold is -0.5");
    REFUSED(options.threshold = NAN, "threshold");
#undef REFUSED
    uf_engine_close(engine);

    uint8_t mask[H][W];
    uf_engine *regression = open_engine("regression", NULL);
    uf_output no_mask = result_in(mask, UF_UINT8);
    CHECK_FAILS(UF_ERR_UNSUPPORTED, "no mask", uf_segment(regression, &good, NULL, &no_mask));
    uf_engine_close(regression);
}

static void test_closed_handles(void) {
    static uint8_t pixels[32][32], mask[32][32];
    uf_engine *engine = open_engine("plain", "cpu");
    uf_context *context = NULL;
    CHECK(uf_context_create(engine, 1, 0, 0, &context) == UF_OK);
    const uf_image image = grey_image(pixels, 32, 32);
    uf_output output = result_in(mask, UF_UINT8);
    uf_engine_close(engine);
    uf_engine_close(engine);
    uf_info info = {.struct_size = sizeof info};
    int32_t height = 0, width = 0;
    uf_context *other = context;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is closed", uf_segment(engine, &image, NULL, &output));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is closed", uf_engine_info(engine, &info));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is closed", uf_output_size(engine, 32, 32, NULL, &height, &width));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is closed", uf_context_create(engine, 1, 0, 0, &other));
    CHECK(other == NULL);
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK); /* keeps the engine alive */
    uf_context_destroy(context);
    uf_context_destroy(context);
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "context is closed", uf_enqueue(context, &image, 0.0F, &output, NULL));
}

/* Buffers that are too small, as far as the caller says how large they are. */
static void test_buffer_sizes(void) {
    enum { H = 32, W = 32, N = 2 };
    static uint8_t pixels[N][H][W], mask[N][H][W];
    uf_engine *engine = open_engine("plain", "cpu");
    uf_image image = grey_image(pixels, H, W);
    image.count = N;
    uf_output output = result_in(mask, UF_UINT8);
    image.size_bytes = sizeof pixels;
    output.size_bytes = sizeof mask;
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    --image.size_bytes;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "image.size_bytes is 2047, but these sizes and strides reach 2048",
                uf_segment(engine, &image, NULL, &output));
    image.count = 1;
    image.row_stride_bytes = 2 * W; /* the last row needs no padding */
    image.size_bytes = (H - 1) * 2 * W + W;
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    --image.size_bytes;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "image.size_bytes", uf_segment(engine, &image, NULL, &output));
    image.data = pixels[1];
    image.row_stride_bytes = -W; /* upwards: what is before data is not checked */
    image.size_bytes = W;
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    output.size_bytes = H * W - 1;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "output.size_bytes is 1023, but these sizes and strides reach 1024",
                uf_segment(engine, &image, NULL, &output));
    uf_engine_close(engine);
}

static void test_descriptions(void) {
    static uint8_t pixels[64];
    uf_image image = {.struct_size = sizeof image, .count = 7, .size_bytes = 1};
    CHECK(uf_image_describe(&image, pixels, "bgra16", 2, 3, 32) == UF_OK);
    CHECK(image.struct_size == sizeof image && image.count == 0 && image.size_bytes == 0);
    CHECK(image.data == pixels + 4 && image.dtype == UF_UINT16 && image.height == 2 && image.width == 3);
    CHECK(image.channels == 3 && image.channel_stride_bytes == -2 && image.pixel_stride_bytes == 8);
    CHECK(image.row_stride_bytes == 32 && image.image_stride_bytes == 0 && image.max_value == 0.0F);
    image.height = 77;
#define REFUSED(text, ...) CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, text, uf_image_describe(__VA_ARGS__))
    REFUSED("image is NULL", NULL, pixels, "mono8", 2, 3, 0);
    REFUSED("data is NULL", &image, NULL, "mono8", 2, 3, 0);
    REFUSED("encoding is NULL", &image, pixels, NULL, 2, 3, 0);
    REFUSED("'yuv422', accepted are mono8", &image, pixels, "yuv422", 2, 3, 0);
    REFUSED("height is 0", &image, pixels, "mono8", 0, 3, 0);
    REFUSED("width is -1", &image, pixels, "mono8", 2, -1, 0);
    REFUSED("3 pixels of rgb8 are 9", &image, pixels, "rgb8", 2, 3, 8);
    CHECK(image.height == 77); /* unchanged */
    image.struct_size = 0;
    REFUSED("image.struct_size is 0", &image, pixels, "mono8", 2, 3, 0);
#undef REFUSED
}

struct competitor {
    uf_context *context;
    const uf_image *image;
    const float (*expected)[32];
    atomic_int *refused; /* by both */
    int done, other;
};

static void *enqueue_often(void *argument) {
    enum { AT_LEAST = 100, AT_MOST = 100000 };
    struct competitor *self = argument;
    float result[32][32];
    while (self->other == 0 && (self->done < AT_LEAST || (*self->refused == 0 && self->done < AT_MOST))) {
        uf_output output = result_in(result, UF_FLOAT32);
        switch (uf_enqueue(self->context, self->image, 0.0F, &output, NULL)) {
        case UF_OK:
            ++self->done;
            self->other += memcmp(result, self->expected, sizeof result) != 0;
            break;
        case UF_ERR_BUSY:
            ++*self->refused;
            self->other += strstr(uf_last_error(), "another thread") == NULL;
            break;
        default:
            ++self->other;
        }
    }
    return NULL;
}

static void test_contexts(void) {
    enum { H = 32, W = 32, N = 2 };
    static uint8_t pixels[N + 1][H][W];
    static float expected[N][H][W], result[N][H][W];
    fill_with_noise(pixels, sizeof pixels, 3);
    uf_engine *engine = open_engine("plain", NULL);
    uf_context *context = NULL;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "context is NULL", uf_context_create(engine, 1, 32, 32, NULL));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "engine is NULL", uf_context_create(NULL, 1, 32, 32, &context));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "count is -1", uf_context_create(engine, -1, 32, 32, &context));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "33 x 32", uf_context_create(engine, 1, 33, 32, &context));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "height is -32", uf_context_create(engine, 1, -32, 32, &context));
    CHECK_FAILS(UF_ERR_OUT_OF_MEMORY, "GB", uf_context_create(engine, 65536, 1 << 20, 1 << 20, &context));
    CHECK(context == NULL);
    CHECK_FAILS(UF_ERR_OUT_OF_MEMORY, "GB", uf_engine_profile(engine, 65536, 1 << 20, 1 << 20, NULL, 0, NULL));
    /* A CPU takes the images of a batch in groups, in memory for one group. */
    CHECK(uf_context_create(engine, 65536, 256, 256, &context) == UF_OK);
    uf_context_destroy(context);
    uf_context_destroy(NULL);
    CHECK(uf_context_create(engine, N, 0, 0, &context) == UF_OK); /* 0: the trained size */

    uf_image image = grey_image(pixels, H, W);
    image.count = N;
    uf_output output = result_in(expected, UF_FLOAT32);
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    uf_engine_close(engine); /* the context keeps it alive */

    output = result_in(result, UF_FLOAT32);
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK);
    CHECK(memcmp(result, expected, sizeof expected) == 0);
    image.count = 1;
    image.data = pixels[1];
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK);
    CHECK(memcmp(result[0], expected[1], sizeof expected[1]) == 0);

    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "context is NULL", uf_enqueue(NULL, &image, 0.0F, &output, NULL));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "cuda_stream", uf_enqueue(context, &image, 0.0F, &output, &image));
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "threshold is 2", uf_enqueue(context, &image, 2.0F, &output, NULL));
    image.count = N + 1;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "up to 2 of 32 x 32", uf_enqueue(context, &image, 0.0F, &output, NULL));
    image.count = 1;
    image.width = 28;
    CHECK_FAILS(UF_ERR_INVALID_ARGUMENT, "1 x 32 x 28", uf_enqueue(context, &image, 0.0F, &output, NULL));

    /* Two threads on one context: each call is done, as if it were alone, or refused. */
    image.width = W;
    atomic_int refused = 0;
    struct competitor both[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; ++i) {
        both[i] = (struct competitor){
            .context = context, .image = &image, .expected = (const float (*)[W])expected[1], .refused = &refused};
        CHECK(pthread_create(&threads[i], NULL, enqueue_often, &both[i]) == 0);
    }
    for (int i = 0; i < 2; ++i)
        pthread_join(threads[i], NULL);
    CHECK(both[0].other == 0 && both[1].other == 0);
    CHECK(both[0].done >= 100 && both[1].done >= 100);
    CHECK(refused > 0);
    uf_context_destroy(context);
}

/* The CPU and the slow, obvious loops agree, for three channels too. */
static void test_devices_agree(void) {
    enum { H = 32, W = 32 };
    static uint8_t pixels[H][W][3], planes[3][H][W];
    static float fast[H][W], slow[H][W], planar[H][W];
    fill_with_noise(pixels, sizeof pixels, 4);
    for (int y = 0; y < H; ++y)
        for (int x = 0; x < W; ++x)
            for (int c = 0; c < 3; ++c)
                planes[c][y][x] = pixels[y][x][c];
    uf_engine *cpu = open_engine("rgb", "cpu"), *reference = open_engine("rgb", "cpu-reference");
    uf_image image = grey_image(pixels, H, W);
    uf_output output = result_in(fast, UF_FLOAT32);
    CHECK(uf_segment(cpu, &image, NULL, &output) == UF_OK);
    output.data = slow;
    CHECK(uf_segment(reference, &image, NULL, &output) == UF_OK);
    image.data = planes;
    image.pixel_stride_bytes = 1;
    image.channel_stride_bytes = H * W;
    output.data = planar;
    CHECK(uf_segment(cpu, &image, NULL, &output) == UF_OK);
    CHECK(memcmp(fast, planar, sizeof fast) == 0);
    for (int y = 0; y < H; ++y)
        for (int x = 0; x < W; ++x)
            CHECK(fabsf(fast[y][x] - slow[y][x]) <= 1e-5F);
    uf_engine_close(cpu);
    uf_engine_close(reference);
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: test_c_api FOLDER\n");
        return 2;
    }
    folder = arguments[1];
    test_names();
    test_open();
    test_info();
    test_output_size();
    test_segment();
    test_every_tiling();
    test_exact_tiles();
    test_refused_images();
    test_closed_handles();
    test_buffer_sizes();
    test_descriptions();
    test_contexts();
    test_devices_agree();
    printf("%d failures\n", failures);
    return failures != 0;
}
