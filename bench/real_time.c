/* Latency of a control loop around uf_enqueue while other processes load the machine: median, p99, p99.9 and maximum.
 *
 *     cc -O2 -std=c11 bench/real_time.c $(pkg-config --cflags --libs unet_fast) -o real_time
 *     real_time cells.unet [CALLS [LOAD [THREADS [AFFINITY [PRIORITY]]]]]
 *
 * CALLS (100000) passes over an image of the trained size, one after the other; LOAD (1) processes that compute and
 * walk through 64 MB of memory meanwhile; THREADS (1) of the engine, those that it starts bound to the processors
 * AFFINITY ("" for any) and at the SCHED_FIFO priority PRIORITY (0 for none), which the calling thread takes too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <unet_fast.h>

enum { LOAD_BYTES = 64 << 20, CACHE_LINE = 64, WARM_UP = 100, MOST_LOAD = 64 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "real_time: %s: %s\n", what, why);
    return 1;
}

/* A process that never rests, and dies with this one. */
static pid_t start_load(void) {
    const pid_t child = fork();
    if (child != 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    volatile unsigned char *memory = malloc(LOAD_BYTES);
    for (size_t i = 0; memory != NULL; i = (i + CACHE_LINE) % LOAD_BYTES)
        ++memory[i];
    _exit(1);
}

static int compare(const void *a, const void *b) {
    const double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **arguments) {
    if (count < 2 || count > 7)
        return fail("usage", "real_time ENGINE.unet [CALLS [LOAD [THREADS [AFFINITY [PRIORITY]]]]]");
    const long calls = count > 2 ? atol(arguments[2]) : 100000;
    const int load = count > 3 ? atoi(arguments[3]) : 1;
    const int priority = count > 6 ? atoi(arguments[6]) : 0;
    if (calls < 1 || calls > 100000000 || load < 0 || load > MOST_LOAD)
        return fail("arguments", "CALLS is 1 to 100000000, LOAD 0 to 64");
    const uf_options options = {.struct_size = sizeof options,
                                .device = "cpu",
                                .threads = count > 4 ? atoi(arguments[4]) : 1,
                                .thread_affinity = count > 5 && arguments[5][0] != '\0' ? arguments[5] : NULL,
                                .thread_priority = priority};
    uf_engine *engine = NULL;
    uf_context *context = NULL;
    uf_info info = {.struct_size = sizeof info};
    if (uf_engine_open(arguments[1], &options, &engine) != UF_OK || uf_engine_info(engine, &info) != UF_OK ||
        uf_context_create(engine, 1, 0, 0, &context) != UF_OK)
        return fail(arguments[1], uf_last_error());

    const size_t pixels = (size_t)info.tile * (size_t)info.tile;
    unsigned char *camera = malloc(pixels * (size_t)info.channels);
    float *result = malloc(pixels * (size_t)info.output_channels * sizeof *result);
    double *seconds = calloc((size_t)calls, sizeof *seconds);
    if (camera == NULL || result == NULL || seconds == NULL)
        return fail("memory", strerror(errno));
    for (size_t i = 0; i < pixels * (size_t)info.channels; ++i)
        camera[i] = (unsigned char)(i * 2654435761U >> 24);
    const uf_image image = {
        .struct_size = sizeof image, .data = camera, .dtype = UF_UINT8, .height = info.tile, .width = info.tile};
    uf_output output = {.struct_size = sizeof output, .data = result, .dtype = UF_FLOAT32};

    pid_t loads[MOST_LOAD];
    for (int i = 0; i < load; ++i)
        if ((loads[i] = start_load()) < 0)
            return fail("fork", strerror(errno));
    const struct sched_param parameters = {.sched_priority = priority};
    if (priority != 0 && sched_setscheduler(0, SCHED_FIFO, &parameters) != 0)
        return fail("priority of the calling thread", strerror(errno));
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
        fprintf(stderr, "real_time: memory is not locked: %s\n", strerror(errno));
    uf_status status = UF_OK;
    for (long i = -WARM_UP; i < calls && status == UF_OK; ++i) {
        const double start = now();
        status = uf_enqueue(context, &image, 0.0F, &output, NULL);
        if (i >= 0)
            seconds[i] = now() - start;
    }
    for (int i = 0; i < load; ++i) {
        kill(loads[i], SIGKILL);
        waitpid(loads[i], NULL, 0);
    }
    if (status != UF_OK)
        return fail("uf_enqueue", uf_last_error());

    qsort(seconds, (size_t)calls, sizeof *seconds, compare);
    const struct {
        const char *name;
        double part;
    } quantiles[] = {{"median", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}, {"maximum", 1.0}};
    printf("%ld calls, %d processes of load, %d threads, %s %s\n", calls, load, info.threads, info.cpu_isa,
           info.precision);
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; ++i)
        printf("%-8s %10.1f us\n", quantiles[i].name, 1e6 * seconds[(long)(quantiles[i].part * (double)(calls - 1))]);
    uf_context_destroy(context);
    uf_engine_close(engine);
    free(camera), free(result), free(seconds);
    return 0;
}
