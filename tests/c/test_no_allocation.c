/* uf_enqueue allocates nothing, and opening, running and closing leaves nothing behind: no memory, threads or files.
 *
 *     test_no_allocation ENGINE.unet WIDE.unet     networks of one channel and one class; the first has a tile of 32,
 *                                                  the second takes any size and has 160 numbers per pixel in memory
 */
#define _POSIX_C_SOURCE 200809L /* nanosleep, in process.h */

#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "process.h"

/* The program's malloc goes before that of the C library, for all libraries. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

static atomic_long allocations, alive;

static void *counted(void *memory) {
    if (memory != NULL) {
        atomic_fetch_add(&allocations, 1);
        atomic_fetch_add(&alive, 1);
    }
    return memory;
}

void *malloc(size_t size) { return counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
int posix_memalign(void **memory, size_t alignment, size_t size) {
    *memory = counted(__libc_memalign(alignment, size));
    return *memory == NULL ? 12 : 0;
}
void *realloc(void *old, size_t size) {
    if (old == NULL)
        return malloc(size);
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(old, size);
}
void free(void *memory) {
    if (memory != NULL)
        atomic_fetch_sub(&alive, 1);
    __libc_free(memory);
}

static unsigned char pixels[32 * 32], mask[32 * 32];

static void use_once(const char *path) {
    uf_options options = {.struct_size = sizeof options, .threads = 2};
    uf_engine *engine = NULL;
    CHECK(uf_engine_open(path, &options, &engine) == UF_OK);
    uf_context *context = NULL;
    CHECK(uf_context_create(engine, 1, 32, 32, &context) == UF_OK);
    uf_image image = {.struct_size = sizeof image, .data = pixels, .dtype = UF_UINT8, .height = 32, .width = 32};
    uf_output output = {.struct_size = sizeof output, .data = mask, .dtype = UF_UINT8};
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK);
    const long before = atomic_load(&allocations);
    for (int i = 0; i < 50; ++i)
        CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK);
    CHECK(atomic_load(&allocations) == before);
    image.width = 31;
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_ERR_INVALID_ARGUMENT);
    uf_engine_close(engine);
    uf_context_destroy(context);
    CHECK(uf_engine_open("no/such/file", NULL, &engine) == UF_ERR_IO);
    CHECK(uf_engine_open_memory(pixels, sizeof pixels, NULL, &engine) == UF_ERR_BAD_FILE);
}

/* Nor does a batch of images that need 600 MB together, because a CPU takes them one by one. */
static void use_batches(const char *path) {
    enum { SIDE = 352, IMAGES = 8 };
    static unsigned char many[IMAGES][SIDE][SIDE], masks[IMAGES][SIDE][SIDE];
    uf_options options = {.struct_size = sizeof options, .device = "cpu", .precision = "float32"};
    uf_engine *engine = NULL;
    CHECK(uf_engine_open(path, &options, &engine) == UF_OK);
    uf_run_options whole = {.struct_size = sizeof whole, .tiling = UF_TILING_NONE};
    uf_image image = {.struct_size = sizeof image, .data = many, .dtype = UF_UINT8, .height = SIDE, .width = SIDE};
    image.count = IMAGES;
    uf_output output = {.struct_size = sizeof output, .data = masks, .dtype = UF_UINT8};
    CHECK(uf_segment(engine, &image, &whole, &output) == UF_OK);
    const long before = atomic_load(&allocations);
    CHECK(uf_segment(engine, &image, &whole, &output) == UF_OK);
    CHECK(atomic_load(&allocations) == before);
    uf_engine_close(engine);
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: test_no_allocation ENGINE.unet WIDE.unet\n");
        return 2;
    }
    fill_with_noise(pixels, sizeof pixels, 1);
    for (int i = 0; i < 20; ++i)
        use_once(arguments[1]); /* makes what lives as long as the process; the last closed handles among it */
    const long alive_before = atomic_load(&alive);
    const int files = open_files(), threads = settled_threads();
    for (int i = 0; i < 20; ++i)
        use_once(arguments[1]);
    CHECK(atomic_load(&alive) == alive_before);
    CHECK(open_files() == files && running_threads(threads) == threads);
    use_batches(arguments[2]);
    printf("%d failures\n", failures);
    return failures != 0;
}
