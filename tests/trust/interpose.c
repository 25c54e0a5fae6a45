/* Lets the n-th call of a kind fail, or ends the process there.  Linked into a program or preloaded (LD_PRELOAD); needs
 * glibc.  `interpose_arm` chooses kind, number and manner, and counts from 0 again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "interpose.h"

static atomic_int armed_kind = INTERPOSE_NOTHING, armed_manner;
static atomic_long armed_number, counted, fired, alive;

void interpose_arm(int kind, long number, int manner) {
    if (kind != INTERPOSE_NOTHING) {
        atomic_store(&counted, 0);
        atomic_store(&fired, 0);
    }
    atomic_store(&armed_number, number);
    atomic_store(&armed_manner, manner);
    atomic_store(&armed_kind, kind);
}

long interpose_counted(void) { return atomic_load(&counted); }
long interpose_fired(void) { return atomic_load(&fired); }
long interpose_alive(void) { return atomic_load(&alive); }

/* Whether this call of that kind is the one. */
static int chosen(int kind) {
    if (atomic_load(&armed_kind) != kind || atomic_fetch_add(&counted, 1) + 1 != atomic_load(&armed_number))
        return 0;
    atomic_store(&fired, 1);
    if (atomic_load(&armed_manner) == INTERPOSE_KILL)
        raise(SIGKILL);
    return 1;
}

/* Allocations. */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

static void *given(void *memory) {
    if (memory != NULL)
        atomic_fetch_add(&alive, 1);
    return memory;
}

static void *refused(void) {
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t size) { return chosen(INTERPOSE_MEMORY) ? refused() : given(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) {
    return chosen(INTERPOSE_MEMORY) ? refused() : given(__libc_calloc(count, size));
}
void *aligned_alloc(size_t alignment, size_t size) {
    return chosen(INTERPOSE_MEMORY) ? refused() : given(__libc_memalign(alignment, size));
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
    *memory = aligned_alloc(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}
void *realloc(void *old, size_t size) {
    if (old == NULL)
        return malloc(size);
    return chosen(INTERPOSE_MEMORY) ? refused() : __libc_realloc(old, size);
}
void free(void *memory) {
    if (memory != NULL)
        atomic_fetch_sub(&alive, 1);
    __libc_free(memory);
}

/* Files. */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int failed(void) {
    errno = atomic_load(&armed_manner) == INTERPOSE_INTERRUPT ? EINTR : EIO;
    return -1;
}

static int opened(const char *path, int flags, mode_t mode) {
    return chosen((flags & O_ACCMODE) == O_RDONLY ? INTERPOSE_READ : INTERPOSE_WRITE)
               ? failed()
               : openat(AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}
int fstat(int file, struct stat *status) { return chosen(INTERPOSE_READ) ? failed() : REAL(fstat)(file, status); }
ssize_t read(int file, void *buffer, size_t size) {
    if (!chosen(INTERPOSE_READ))
        return REAL(read)(file, buffer, size);
    switch (atomic_load(&armed_manner)) {
    case INTERPOSE_END:
        return 0;
    case INTERPOSE_SHORT:
        return REAL(read)(file, buffer, size > 1 ? size / 2 : size);
    default:
        return failed();
    }
}
/* A process that is killed in a write may leave half of it. */
ssize_t write(int file, const void *buffer, size_t size) {
    if (atomic_load(&armed_kind) == INTERPOSE_WRITE && atomic_load(&armed_manner) == INTERPOSE_KILL &&
        atomic_load(&counted) + 1 == atomic_load(&armed_number))
        (void)!REAL(write)(file, buffer, size / 2);
    return chosen(INTERPOSE_WRITE) ? failed() : REAL(write)(file, buffer, size);
}
int fsync(int file) { return chosen(INTERPOSE_WRITE) ? failed() : REAL(fsync)(file); }
int rename(const char *from, const char *to) { return chosen(INTERPOSE_WRITE) ? failed() : REAL(rename)(from, to); }
int mkstemp(char *name) { return chosen(INTERPOSE_WRITE) ? failed() : REAL(mkstemp)(name); }
int unlink(const char *path) { return chosen(INTERPOSE_WRITE) ? failed() : REAL(unlink)(path); }

/* The network. */

int socket(int domain, int type, int protocol) {
    return chosen(INTERPOSE_NETWORK) ? failed() : REAL(socket)(domain, type, protocol);
}
