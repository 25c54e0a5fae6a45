/* What uf_enqueue does besides computing: nothing.
 *
 *     test_real_time ENGINE.unet THREADS     a network of one channel and one class with a tile of 32
 *
 * After a call to warm up, a thousand calls are watched.  Counted are allocations, mutexes that are taken, waits on
 * condition variables and locale objects that are made, by functions of the program that stand before those of the
 * libraries; page faults under mlockall; and system calls, by a filter that ends the program at the first one that the
 * header does not name: none with one thread, futex with more.
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

enum { SIDE = 32, CALLS = 1000, NOT_DONE = 77 };

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

static uint8_t pixels[SIDE][SIDE];
static float result[SIDE][SIDE];
static const uf_image image = {
    .struct_size = sizeof image, .data = pixels, .dtype = UF_UINT8, .height = SIDE, .width = SIDE};
static uf_output output = {.struct_size = sizeof output, .data = result, .dtype = UF_FLOAT32};

static int enqueue_often(uf_context *context) {
    for (int i = 0; i < CALLS; ++i)
        if (uf_enqueue(context, &image, 0.0F, &output, NULL) != UF_OK)
            return 0;
    return 1;
}

static void test_counts(uf_context *context, int threads) {
    const long allocations_before = allocations, locks_before = locks, waits_before = waits, locales_before = locales;
    CHECK(enqueue_often(context));
    CHECK(allocations == allocations_before);
    CHECK(locales == locales_before);
    if (threads == 1) {
        CHECK(locks == locks_before);
        CHECK(waits == waits_before);
    } else {
        CHECK(locks > locks_before); /* the counter counts */
    }
    /* Neither do the counters stand still when there is something to count. */
    uf_output wrong = output;
    wrong.dtype = 0;
    CHECK(uf_enqueue(context, &image, 0.0F, &wrong, NULL) == UF_ERR_INVALID_ARGUMENT);
    CHECK(allocations > allocations_before && locales > locales_before);
}

static void test_page_faults(uf_context *context) {
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        printf("skipped: page faults under mlockall: %s\n", strerror(errno));
        return;
    }
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    CHECK(enqueue_often(context));
    getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_minflt == before.ru_minflt && after.ru_majflt == before.ru_majflt);
    munlockall();
}

static void on_system_call(int number, siginfo_t *info, void *state) {
    (void)number, (void)state;
    char text[] = "system call 0000 in uf_enqueue\n";
    for (int place = 15, value = info->si_syscall; place > 11; --place, value /= 10)
        text[place] = (char)('0' + value % 10);
    _exit(write(2, text, sizeof text - 1) < 0 ? 1 : 1);
}

/* In this thread alone; for the library's own threads futex is what they sleep in. */
static void test_system_calls(uf_context *context, int threads) {
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
    const int done = enqueue_often(context);
    static const char failed[] = "uf_enqueue failed under the filter\n", passed[] = "no system calls\n";
    _exit(failures != 0 || (done ? write(1, passed, sizeof passed - 1) : write(2, failed, sizeof failed - 1) * 0) <= 0);
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    const int threads = atoi(arguments[2]);
    fill_with_noise(pixels, sizeof pixels, 1);
    const uf_options options = {.struct_size = sizeof options, .device = "cpu", .threads = threads};
    uf_engine *engine = NULL;
    uf_context *context = NULL;
    CHECK(uf_engine_open(arguments[1], &options, &engine) == UF_OK);
    CHECK(uf_context_create(engine, 1, 0, 0, &context) == UF_OK);
    CHECK(uf_enqueue(context, &image, 0.0F, &output, NULL) == UF_OK);
    test_counts(context, threads);
    test_page_faults(context);
    fprintf(stderr, "%d failures\n", failures);
    fflush(stdout);
    test_system_calls(context, threads);
    return failures != 0;
}
