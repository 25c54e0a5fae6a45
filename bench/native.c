/* What the benchmarks need in C: the machine's ceilings, the reference workload of the guard, and the C API without
 * Python.  Built by machine.py with -O3 -march=native and loaded with ctypes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../csrc/include/unet_fast.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
typedef float vector __attribute__((vector_size(VECTOR_BYTES)));

/* Independent sums, enough to hide the latency of a multiply-add (4 to 5 cycles, two per cycle) and few enough to stay
 * in the 16 registers of AVX2 together with the two factors. */
enum { SUMS = 12, LARGEST_THREADS = 256 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* One thread's share of a job: part `part` of `parts`. */
typedef struct share {
    void (*work)(const struct share *);
    int part, parts;
    int64_t repeats, elements;
    float *a;
    const float *b, *c;
} share;

static void *run_share(void *argument) {
    const share *mine = argument;
    mine->work(mine);
    return NULL;
}

/* Seconds that `threads` threads take for `job`, or -1. */
static double run_on_threads(share job, int threads) {
    pthread_t handles[LARGEST_THREADS];
    share shares[LARGEST_THREADS];
    if (threads < 1 || threads > LARGEST_THREADS) {
        return -1;
    }
    const double start = now();
    int started = 1; /* part 0 is the caller's */
    for (; started < threads; ++started) {
        shares[started] = job;
        shares[started].part = started;
        if (pthread_create(&handles[started], NULL, run_share, &shares[started]) != 0) {
            break;
        }
    }
    job.part = 0;
    job.work(&job);
    for (int i = 1; i < started; ++i) {
        pthread_join(handles[i], NULL);
    }
    return started == threads ? now() - start : -1;
}

/* -- peak arithmetic: chains of multiply-adds in registers -----------------------------------------------------------
 */

static volatile float sink; /* keeps results, and with them the work, alive */

static void multiply_add_float32(const share *job) {
    vector sums[SUMS], factor = {0}, term = {0};
    for (int i = 0; i < SUMS; ++i) { /* unknown to the compiler, or it would leave out a chain whose sum stays */
        sums[i] = (vector){0} + (sink + (float)i);
    }
    factor += 0.999f; /* the sums stay finite and normal */
    term += 0.001f;
    for (int64_t n = 0; n < job->repeats; ++n) {
        for (int i = 0; i < SUMS; ++i) {
            sums[i] = sums[i] * factor + term;
        }
    }
    for (int i = 1; i < SUMS; ++i) {
        sums[0] += sums[i];
    }
    sink = sums[0][0];
}

#if defined(__AVX512BF16__)
static void multiply_add_bf16(const share *job) {
    __m512 sums[SUMS];
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int i = 0; i < SUMS; ++i) {
        sums[i] = _mm512_set1_ps((float)i);
    }
    for (int64_t n = 0; n < job->repeats; ++n) {
        for (int i = 0; i < SUMS; ++i) {
            sums[i] = _mm512_dpbf16_ps(sums[i], ones, ones);
        }
    }
    for (int i = 1; i < SUMS; ++i) {
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    }
    sink = _mm512_cvtss_f32(sums[0]);
}
#endif

#if defined(__AVX512VNNI__)
static void multiply_add_int8(const share *job) {
    __m512i sums[SUMS];
    const __m512i ones = _mm512_set1_epi8(1);
    for (int i = 0; i < SUMS; ++i) {
        sums[i] = _mm512_set1_epi32(i);
    }
    for (int64_t n = 0; n < job->repeats; ++n) {
        for (int i = 0; i < SUMS; ++i) {
            sums[i] = _mm512_dpbusd_epi32(sums[i], ones, ones);
        }
    }
    for (int i = 1; i < SUMS; ++i) {
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    }
    sink = (float)_mm512_cvtsi512_si32(sums[0]);
}
#endif

/* Operations per second (2 per multiply-add) of "float32", "bf16" or "int8" on `threads` threads; 0 where this CPU has
 * no instruction for it, below 0 if threads cannot be had. */
double peak_operations(const char *precision, int threads, int64_t repeats) {
    share job = {multiply_add_float32, 0, threads, repeats, 0, NULL, NULL, NULL};
    double operations = 2.0 * VECTOR_BYTES / sizeof(float);
    if (strcmp(precision, "bf16") == 0) {
#if defined(__AVX512BF16__)
        job.work = multiply_add_bf16;
        operations = 2.0 * 32;
#else
        return 0;
#endif
    } else if (strcmp(precision, "int8") == 0) {
#if defined(__AVX512VNNI__)
        job.work = multiply_add_int8;
        operations = 2.0 * 64;
#else
        return 0;
#endif
    } else if (strcmp(precision, "float32") != 0) {
        return 0;
    }
    return operations * SUMS * (double)repeats * threads / run_on_threads(job, threads);
}

/* -- memory bandwidth ------------------------------------------------------------------------------------------------
 */

static void triad(const share *job) {
    const int64_t first = job->elements * job->part / job->parts, last = job->elements * (job->part + 1) / job->parts;
    float *restrict a = job->a;
    for (int64_t i = first; i < last; ++i) {
        a[i] = job->b[i] + 0.5f * job->c[i];
    }
}

/* Seconds for a[i] = b[i] + c[i] / 2 over `elements` floats. */
double triad_seconds(float *a, const float *b, const float *c, int64_t elements, int threads) {
    return run_on_threads((share){triad, 0, threads, 1, elements, a, b, c}, threads);
}

/* -- the reference workload ------------------------------------------------------------------------------------------
 * 3x3 convolutions at the sizes of a U-Net, down and up again, in plain C and with no line of the runtime.  Neighbours
 * on a shared machine must slow it down as they do the runtime, so it has the same arithmetic, memory and threads:
 * these take rows as they get to them, and wait for each other after every stage. */

enum { LEVELS = 5, STAGES = 2 * LEVELS - 1, SIDE = 256, WIDTH = 16, PIXELS = 4, ROWS = SIDE };

/* The compiler splits it into the vectors that the CPU has. */
typedef float row16 __attribute__((vector_size(16 * sizeof(float))));

/* (side + 2, side + 2, channels) to (side, side, channels), with weights (channels / 16, 9, channels, 16). */
typedef struct {
    int side, channels;
    float *source;
    row16 *result, *weights;
} level;

static level levels[LEVELS];
static atomic_int rows_taken[STAGES], rows_done[STAGES];

/* In one block of huge pages where there are any: small ones lie in the caches as chance has it, another way in every
 * process. */
static int make_levels(void) {
    const size_t block_bytes = (size_t)32 << 20, page_bytes = (size_t)2 << 20;
    if (levels[0].source != NULL) {
        return 1;
    }
    float *next = aligned_alloc(page_bytes, block_bytes);
    if (next == NULL) {
        return 0;
    }
#if defined(MADV_HUGEPAGE)
    madvise(next, block_bytes, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i < block_bytes / sizeof(float); ++i) {
        next[i] = (float)(i % 7) / 7;
    }
    for (int i = 0; i < LEVELS; ++i) {
        const size_t side = SIDE >> i, channels = WIDTH << i, pixels = side * side, padded = (side + 2) * (side + 2);
        levels[i] = (level){.side = (int)side, .channels = (int)channels, .source = next};
        next += padded * channels;
        levels[i].result = (row16 *)next;
        next += pixels * channels;
        levels[i].weights = (row16 *)next;
        next += 9 * channels * channels;
    }
    return 1;
}

/* One row of one group of 16 output channels; every level has ROWS of them. */
static void convolve_row(const level *l, int y, int group) {
    const size_t padded = l->side + 2, channels = l->channels;
    for (int x = 0; x < l->side; x += PIXELS) {
        row16 sums[PIXELS] = {{0}};
        for (int tap = 0; tap < 9; ++tap) {
            const float *pixels = l->source + ((y + tap / 3) * padded + x + tap % 3) * channels;
            const row16 *weights = l->weights + (group * 9 + tap) * channels;
            for (size_t in = 0; in < channels; ++in) {
                for (int pixel = 0; pixel < PIXELS; ++pixel) {
                    sums[pixel] += pixels[pixel * channels + in] * weights[in];
                }
            }
        }
        for (int pixel = 0; pixel < PIXELS; ++pixel) {
            l->result[((size_t)y * l->side + x + pixel) * (channels / 16) + group] = sums[pixel];
        }
    }
}

static void convolve(void) {
    for (int stage = 0; stage < STAGES; ++stage) {
        const level *l = &levels[stage < LEVELS ? stage : STAGES - 1 - stage];
        for (int row; (row = atomic_fetch_add(&rows_taken[stage], 1)) < ROWS;) {
            convolve_row(l, row % l->side, row / l->side);
            atomic_fetch_add(&rows_done[stage], 1);
        }
        while (atomic_load(&rows_done[stage]) < ROWS) {
            sched_yield();
        }
    }
}

/* Workers that stay, asleep between passes: a new thread would begin on the processor of its parent. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pass_begins = PTHREAD_COND_INITIALIZER;
static int workers, helpers; /* that there are; that take part in this pass */
static int64_t pass;
static atomic_int busy;

static void *help(void *argument) {
    const int number = (int)(intptr_t)argument;
    int64_t seen = 0;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (pass == seen || number >= helpers) {
            seen = pass;
            pthread_cond_wait(&pass_begins, &mutex);
        }
        seen = pass;
        pthread_mutex_unlock(&mutex);
        convolve();
        atomic_fetch_sub(&busy, 1);
        pthread_mutex_lock(&mutex);
    }
    return NULL;
}

/* Seconds for `repeats` passes on `threads` threads, or -1. */
double reference_seconds(int threads, int64_t repeats) {
    if (threads < 1 || threads > LARGEST_THREADS || !make_levels()) {
        return -1;
    }
    for (; workers < threads - 1; ++workers) {
        pthread_t handle;
        if (pthread_create(&handle, NULL, help, (void *)(intptr_t)workers) != 0) {
            return -1;
        }
        pthread_detach(handle);
    }
    const double start = now();
    for (int64_t n = 0; n < repeats; ++n) {
        memset(rows_taken, 0, sizeof rows_taken);
        memset(rows_done, 0, sizeof rows_done);
        pthread_mutex_lock(&mutex);
        helpers = threads - 1;
        atomic_store(&busy, helpers);
        ++pass;
        pthread_cond_broadcast(&pass_begins);
        pthread_mutex_unlock(&mutex);
        convolve();
        while (atomic_load(&busy) > 0) {
            sched_yield();
        }
    }
    return now() - start;
}

/* -- the C API
 * --------------------------------------------------------------------------------------------------------- */

/* An engine with a context for one batch, and the functions of the library that it came from. */
typedef struct {
    uf_engine *engine;
    uf_context *context;
    uf_image image;
    uf_output output;
    uf_status (*segment)(uf_engine *, const uf_image *, const uf_run_options *, uf_output *);
    uf_status (*enqueue)(uf_context *, const uf_image *, float, uf_output *, void *);
    const char *(*last_error)(void);
    void (*destroy_context)(uf_context *);
    void (*close_engine)(uf_engine *);
} c_engine;

/* Opens `path` with the runtime `library` for `count` uint8 images of height x width x channels, in host memory or,
 * with `memory` UF_MEMORY_CUDA, on the device.  Returns UF_OK, else `message` says what failed. */
int c_open(c_engine *c, const char *library, const char *path, const uf_options *options, int memory, int count,
           int height, int width, int channels, char *message, size_t message_bytes) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        snprintf(message, message_bytes, "%s", dlerror());
        return UF_ERR_IO;
    }
    uf_status (*open_engine)(const char *, const uf_options *, uf_engine **) = dlsym(handle, "uf_engine_open");
    uf_status (*create)(uf_engine *, int32_t, int32_t, int32_t, uf_context **) = dlsym(handle, "uf_context_create");
    memset(c, 0, sizeof *c);
    c->segment = dlsym(handle, "uf_segment");
    c->enqueue = dlsym(handle, "uf_enqueue");
    c->last_error = dlsym(handle, "uf_last_error");
    c->destroy_context = dlsym(handle, "uf_context_destroy");
    c->close_engine = dlsym(handle, "uf_engine_close");
    c->image = (uf_image){.struct_size = sizeof c->image, .dtype = UF_UINT8, .memory = memory, .count = count};
    c->image.height = height;
    c->image.width = width;
    c->image.channels = channels;
    c->output = (uf_output){.struct_size = sizeof c->output, .dtype = UF_UINT8, .memory = memory};
    uf_status status = open_engine(path, options, &c->engine);
    if (status == UF_OK) {
        status = create(c->engine, count, height, width, &c->context);
    }
    if (status != UF_OK) {
        snprintf(message, message_bytes, "%s", c->last_error());
    }
    return (int)status;
}

void c_close(c_engine *c) {
    c->destroy_context(c->context);
    c->close_engine(c->engine);
}

int c_segment(c_engine *c, const void *pixels, void *mask) {
    const uf_run_options run = {.struct_size = sizeof run, .tiling = UF_TILING_NONE};
    c->image.data = pixels;
    c->output.data = mask;
    return (int)c->segment(c->engine, &c->image, &run, &c->output);
}

/* Enqueues `passes` passes one after the other. */
int c_enqueue(c_engine *c, const void *pixels, void *mask, void *stream, int passes) {
    c->image.data = pixels;
    c->output.data = mask;
    uf_status status = UF_OK;
    for (int i = 0; i < passes && status == UF_OK; ++i) {
        status = c->enqueue(c->context, &c->image, 0, &c->output, stream);
    }
    return (int)status;
}

/* The seconds of `rounds` calls of uf_segment and of uf_enqueue, in turns, after one of each to warm up. */
int c_time_calls(c_engine *c, const void *pixels, void *mask, int rounds, double *segment_seconds,
                 double *enqueue_seconds) {
    for (int i = -1; i < rounds; ++i) {
        const double start = now();
        int status = c_segment(c, pixels, mask);
        const double between = now();
        if (status == UF_OK) {
            status = c_enqueue(c, pixels, mask, NULL, 1);
        }
        if (status != UF_OK) {
            return status;
        }
        if (i >= 0) {
            segment_seconds[i] = between - start;
            enqueue_seconds[i] = now() - between;
        }
    }
    return UF_OK;
}

size_t c_engine_bytes(void) { return sizeof(c_engine); }
