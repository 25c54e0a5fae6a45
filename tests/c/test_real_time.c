/* What uf_enqueue and uf_segment do besides computing: nothing.
 *
 *     test_real_time ENGINE.unet THREADS KEEP_WARM_MS     a network of one channel and one class
 *
 * Each way of calling is warmed up by one call, then many are watched.  Counted are allocations, mutexes that are
 * taken, waits on condition variables and locale objects that are made, by functions of the program that stand before
 * those of the libraries; page faults under mlockall; and system calls, by a filter that ends the program at the first
 * one that the header does not name: none with one thread, futex with more.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

enum { HEIGHT = 150, WIDTH = 100, BATCH = 3, CALLS = 40 };

static atomic_long allocations, locks, waits, locales;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

void *malloc(size_t size) {
    ++allocations;
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    ++allocations;
    return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) {
    ++allocations;
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
    ++allocations;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
    ++allocations;
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}
void free(void *memory) {
    allocations += memory != NULL;
    __libc_free(memory);
}

/* The next definition of a function, after ours. */
#define NEXT(type, name)                                                                                               \
    static __typeof__(type) next;                                                                                      \
    if (next == NULL)                                                                                                  \
    *(void **)&next = dlsym(RTLD_NEXT, name)

int pthread_mutex_lock(pthread_mutex_t *mutex) {
    NEXT(int (*)(pthread_mutex_t *), "pthread_mutex_lock");
    ++locks;
    return next(mutex);
}
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) {
    NEXT(int (*)(pthread_cond_t *, pthread_mutex_t *), "pthread_cond_wait");
    ++waits;
    return next(condition, mutex);
}

/* std::locale::locale(): every stream of C++ makes one. */
void _ZNSt6localeC1Ev(void *self);
void _ZNSt6localeC1Ev(void *self) {
    NEXT(void (*)(void *), "_ZNSt6localeC1Ev");
    ++locales;
    next(self);
}

static uint8_t pixels[BATCH][HEIGHT][WIDTH];
static float result[BATCH][HEIGHT][WIDTH];
static uf_engine *engine;
static uf_context *context;

/* One way of calling. */
struct way {
    const char *name;
    uf_context *context; /* NULL: uf_segment */
    uf_image image;
    uf_run_options options;
    uf_output output;
    long locks; /* of one call of an engine with one thread */
};

/* Mutexes of uf_segment: for what runs the engine, for taking a context and for giving it back; before and after with
 * the thread that keeps the engine warm. */
enum { SEGMENT_LOCKS = 3, KEEP_WARM_LOCKS = 2, MOST_WAYS = 16 };
static struct way ways[MOST_WAYS];
static int way_count, segment_locks = SEGMENT_LOCKS;

static struct way *add_way(const char *name, int height, int width, int tiling, int dtype) {
    struct way *way = &ways[way_count++];
    *way = (struct way){
        .name = name,
        .image =
            {.struct_size = sizeof way->image, .data = pixels, .dtype = UF_UINT8, .height = height, .width = width},
        .options = {.struct_size = sizeof way->options, .tiling = tiling},
        .output = {.struct_size = sizeof way->output, .data = result, .dtype = dtype, .size_bytes = sizeof result},
        .locks = segment_locks};
    return way;
}

static void add_ways(const uf_info *info) {
    const int tile = info->tile, core = tile - 2 * info->margin, more = core + info->multiple / 2;
    struct way *way = add_way("uf_enqueue", tile, tile, 0, UF_FLOAT32);
    way->context = context;
    way->locks = 0;
    add_way("whole image", tile, tile, UF_TILING_NONE, UF_UINT8);
    add_way("one tile", core, core, UF_TILING_FAST, UF_UINT8);
    add_way("mirrored edge", core - 3, core - 1, UF_TILING_FAST, UF_FLOAT32);
    add_way("batch", core, core, UF_TILING_FAST, UF_UINT8)->image.count = BATCH;
    add_way("blended tiles", 2 * core + 1, 2 * core, UF_TILING_FAST, UF_UINT8);
    add_way("blended rows", more, core, UF_TILING_FAST, UF_FLOAT32);
    way = add_way("exact tiles", HEIGHT, WIDTH, UF_TILING_EXACT, UF_UINT8);
    way->options.tile = info->minimum + (2 * info->halo / info->multiple + 3) * info->multiple;
    add_way("resized", HEIGHT, WIDTH, UF_TILING_RESIZE, UF_UINT8);
    add_way("resized batch", more, more, UF_TILING_RESIZE, UF_FLOAT32)->image.count = BATCH;
}

static uf_status call(struct way *way) {
    return way->context != NULL ? uf_enqueue(way->context, &way->image, 0.0F, &way->output, NULL)
                                : uf_segment(engine, &way->image, &way->options, &way->output);
}

static int call_often(struct way *way) {
    for (int i = 0; i < CALLS; ++i)
        if (call(way) != UF_OK)
            return 0;
    return 1;
}

static void test_counts(struct way *way, int threads) {
    const int failures_before = failures;
    const long allocations_before = allocations, locks_before = locks, waits_before = waits, locales_before = locales;
    CHECK(call_often(way));
    CHECK(allocations == allocations_before);
    CHECK(locales == locales_before);
    if (threads == 1) {
        CHECK(locks == locks_before + way->locks * CALLS);
        CHECK(waits == waits_before);
    } else {
        CHECK(locks > locks_before + way->locks * CALLS); /* the counter counts */
    }
    /* Neither do the counters stand still when there is something to count. */
    const int dtype = way->output.dtype;
    way->output.dtype = 0;
    CHECK(call(way) == UF_ERR_INVALID_ARGUMENT);
    CHECK(allocations > allocations_before && locales > locales_before);
    way->output.dtype = dtype;
    if (failures != failures_before)
        fprintf(stderr, "%s: %ld allocations, %ld locks in %d calls\n", way->name, allocations - allocations_before,
                locks - locks_before, CALLS);
}

static void test_page_faults(void) {
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        printf("skipped: page faults under mlockall: %s\n", strerror(errno));
        return;
    }
    for (int i = 0; i < way_count; ++i) {
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        CHECK(call_often(&ways[i]));
        getrusage(RUSAGE_SELF, &after);
        CHECK(after.ru_minflt == before.ru_minflt && after.ru_majflt == before.ru_majflt);
    }
    munlockall();
}

static const char *watched;

static void on_system_call(int number, siginfo_t *info, void *state) {
    (void)number, (void)state;
    char text[] = "system call 0000: ";
    for (int place = 15, value = info->si_syscall; place > 11; --place, value /= 10)
        text[place] = (char)('0' + value % 10);
    _exit(write(2, text, sizeof text - 1) < 0 || write(2, watched, strlen(watched)) < 0 ? 1 : 1);
}

/* In this thread alone; for the library's own threads futex is what they sleep in. */
static void test_system_calls(int threads) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, threads > 1 ? SYS_futex : SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    const struct sigaction action = {.sa_sigaction = on_system_call, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        printf("skipped: system calls: %s\n", strerror(errno));
        return;
    }
    int done = 1;
    for (int i = 0; i < way_count; ++i) {
        watched = ways[i].name;
        done = done && call_often(&ways[i]);
    }
    static const char failed[] = "a call failed under the filter\n", passed[] = "no system calls\n";
    _exit(failures != 0 || (done ? write(1, passed, sizeof passed - 1) : write(2, failed, sizeof failed - 1) * 0) <= 0);
}

int main(int count, char **arguments) {
    if (count != 4)
        return 2;
    const int threads = atoi(arguments[2]), keep_warm_ms = atoi(arguments[3]);
    segment_locks += keep_warm_ms != 0 ? KEEP_WARM_LOCKS : 0;
    fill_with_noise(pixels, sizeof pixels, 1);
    const uf_options options = {
        .struct_size = sizeof options, .device = "cpu", .threads = threads, .keep_warm_ms = keep_warm_ms};
    uf_info info = {.struct_size = sizeof info};
    CHECK(uf_engine_open(arguments[1], &options, &engine) == UF_OK);
    CHECK(uf_context_create(engine, 1, 0, 0, &context) == UF_OK);
    CHECK(uf_engine_info(engine, &info) == UF_OK && info.tile <= WIDTH);
    add_ways(&info);
    for (int i = 0; i < way_count; ++i)
        CHECK(call(&ways[i]) == UF_OK);
    for (int i = 0; i < way_count; ++i)
        test_counts(&ways[i], threads);
    test_page_faults();
    fprintf(stderr, "%d failures\n", failures);
    fflush(stdout);
    test_system_calls(threads);
    return failures != 0;
}
