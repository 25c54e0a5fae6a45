/* See interpose.c. */
#ifndef INTERPOSE_H
#define INTERPOSE_H

#ifdef __cplusplus
extern "C" {
#endif

enum interpose_kind {
    INTERPOSE_NOTHING,
    INTERPOSE_MEMORY, /* allocations */
    INTERPOSE_READ,   /* open for reading, fstat, read */
    INTERPOSE_WRITE,  /* open for writing, write, fsync, rename, mkstemp, unlink */
    INTERPOSE_NETWORK /* socket */
};

enum interpose_manner {
    INTERPOSE_FAIL,      /* ENOMEM or EIO */
    INTERPOSE_INTERRUPT, /* EINTR */
    INTERPOSE_END,       /* read gives 0 */
    INTERPOSE_SHORT,     /* read gives half of what was asked for */
    INTERPOSE_KILL       /* SIGKILL */
};

/* Call `number` of that kind, counted from now, goes wrong; 0: none, calls are only counted.  INTERPOSE_NOTHING: none
 * from now on, and what has been counted stays. */
void interpose_arm(int kind, long number, int manner);
long interpose_counted(void); /* calls of the kind since then */
long interpose_fired(void);   /* whether it has gone wrong */
long interpose_alive(void);   /* allocations that have not been freed */

#ifdef __cplusplus
}
#endif
#endif
