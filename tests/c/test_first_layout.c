/* Today's header against the first layout of each struct, and a program of that time against today's library.
 *
 *     test_first_layout ENGINE.unet     a network of one channel and one class with a tile of 32
 *
 * An old struct is followed by bytes of 0xAB here, as anything may follow it on a caller's stack: none of it may be
 * read as a field or written to.
 */
#include "check.h"
#include "first_layout.h"

#define SAME(name, field)                                                                                              \
    _Static_assert(offsetof(uf_##name, field) == offsetof(first_##name, field), #name "." #field " has moved");        \
    _Static_assert(sizeof(((uf_##name *)0)->field) == sizeof(((first_##name *)0)->field), #name "." #field)

SAME(options, struct_size);
SAME(options, device);
SAME(options, precision);
SAME(options, cpu_isa);
SAME(options, threads);
SAME(options, refuse_embedded_code);
SAME(image, struct_size);
SAME(image, data);
SAME(image, dtype);
SAME(image, memory);
SAME(image, count);
SAME(image, height);
SAME(image, width);
SAME(image, channels);
SAME(image, image_stride_bytes);
SAME(image, row_stride_bytes);
SAME(image, pixel_stride_bytes);
SAME(image, channel_stride_bytes);
SAME(image, max_value);
SAME(output, struct_size);
SAME(output, data);
SAME(output, dtype);
SAME(output, memory);
SAME(output, image_stride_bytes);
SAME(output, row_stride_bytes);
SAME(run_options, struct_size);
SAME(run_options, tiling);
SAME(run_options, tile);
SAME(run_options, overlap);
SAME(run_options, threshold);
SAME(info, struct_size);
SAME(info, channels);
SAME(info, output_channels);
SAME(info, output_kind);
SAME(info, tile);
SAME(info, multiple);
SAME(info, remainder);
SAME(info, minimum);
SAME(info, margin);
SAME(info, halo);
SAME(info, threads);
SAME(info, op_count);
SAME(info, threshold);
SAME(info, name);
SAME(info, device);
SAME(info, device_reason);
SAME(info, precision);
SAME(info, cpu_isa);

/* A field in the padding at the end of an old struct would be whatever the old program had there. */
_Static_assert(offsetof(uf_options, thread_affinity) >= sizeof(first_options), "new field in old padding");
_Static_assert(offsetof(uf_image, size_bytes) >= sizeof(first_image), "new field in old padding");
_Static_assert(offsetof(uf_output, size_bytes) >= sizeof(first_output), "new field in old padding");

static int is_untouched(const unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; ++i)
        if (bytes[i] != 0xAB)
            return 0;
    return 1;
}

#define OLD(name)                                                                                                      \
    struct {                                                                                                           \
        first_##name old;                                                                                              \
        unsigned char behind[64];                                                                                      \
    }
#define PREPARE(variable)                                                                                              \
    memset(&variable, 0, sizeof variable);                                                                             \
    memset(variable.behind, 0xAB, sizeof variable.behind);                                                             \
    variable.old.struct_size = sizeof variable.old

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    enum { SIDE = 32 };
    static uint8_t pixels[SIDE][SIDE], result[SIDE][SIDE], expected[SIDE][SIDE];
    fill_with_noise(pixels, sizeof pixels, 11);

    OLD(options) options;
    PREPARE(options);
    options.old.device = "cpu";
    options.old.threads = 2;
    uf_engine *engine = NULL;
    CHECK(uf_engine_open(arguments[1], (const uf_options *)&options.old, &engine) == UF_OK);

    OLD(info) info;
    PREPARE(info);
    CHECK(uf_engine_info(engine, (uf_info *)&info.old) == UF_OK);
    CHECK(info.old.threads == 2 && info.old.tile == SIDE && strcmp(info.old.device, "cpu") == 0);
    CHECK(info.old.struct_size == sizeof info.old && is_untouched(info.behind, sizeof info.behind));

    OLD(image) image;
    PREPARE(image);
    image.old.data = pixels;
    image.old.dtype = UF_UINT8;
    image.old.height = image.old.width = SIDE;
    OLD(output) output;
    PREPARE(output);
    output.old.data = result;
    output.old.dtype = UF_UINT8;
    OLD(run_options) run_options;
    PREPARE(run_options);
    CHECK(uf_segment(engine, (const uf_image *)&image.old, (const uf_run_options *)&run_options.old,
                     (uf_output *)&output.old) == UF_OK);
    const uf_image today = {
        .struct_size = sizeof today, .data = pixels, .dtype = UF_UINT8, .height = SIDE, .width = SIDE};
    uf_output mask = {.struct_size = sizeof mask, .data = expected, .dtype = UF_UINT8};
    CHECK(uf_segment(engine, &today, NULL, &mask) == UF_OK);
    CHECK(memcmp(result, expected, sizeof expected) == 0);

    uf_context *context = NULL;
    CHECK(uf_context_create(engine, 1, 0, 0, &context) == UF_OK);
    memset(result, 0xAB, sizeof result);
    CHECK(uf_enqueue(context, (const uf_image *)&image.old, 0.0F, (uf_output *)&output.old, NULL) == UF_OK);
    CHECK(memcmp(result, expected, sizeof expected) == 0);

    PREPARE(image);
    CHECK(uf_image_describe((uf_image *)&image.old, pixels, "mono8", SIDE, SIDE, 0) == UF_OK);
    CHECK(image.old.width == SIDE && is_untouched(image.behind, sizeof image.behind));

    /* A program of a newer header: fine as long as it does not use what is new. */
    struct {
        uf_image known;
        unsigned char newer[24];
    } newer = {.known = today};
    newer.known.struct_size = sizeof newer;
    CHECK(uf_enqueue(context, &newer.known, 0.0F, &mask, NULL) == UF_OK);
    newer.newer[23] = 1;
    CHECK_FAILS(UF_ERR_UNSUPPORTED, "newer library", uf_enqueue(context, &newer.known, 0.0F, &mask, NULL));
    struct {
        uf_info known;
        unsigned char newer[24];
    } newer_info;
    memset(&newer_info, 0xAB, sizeof newer_info);
    newer_info.known.struct_size = sizeof newer_info;
    CHECK(uf_engine_info(engine, &newer_info.known) == UF_OK);
    CHECK(newer_info.known.tile == SIDE && newer_info.newer[0] == 0 && newer_info.newer[23] == 0);

    uf_context_destroy(context);
    uf_engine_close(engine);
    printf("%d failures\n", failures);
    return failures != 0;
}
