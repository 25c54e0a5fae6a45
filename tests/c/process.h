/* What this process holds: for tests that nothing is left behind. */
#ifndef PROCESS_H
#define PROCESS_H

#include <dirent.h>
#include <stddef.h>
#include <time.h>

static inline int entries(const char *folder) {
    DIR *const directory = opendir(folder);
    int count = 0;
    while (readdir(directory) != NULL)
        ++count;
    closedir(directory);
    return count;
}

static inline int open_files(void) { return entries("/proc/self/fd"); }

/* Linux lists a thread for a moment after it was joined: waits up to a second until at most `expected` are listed. */
static inline int running_threads(int expected) {
    const struct timespec millisecond = {0, 1000000};
    int threads = entries("/proc/self/task");
    for (int look = 0; threads > expected && look < 1000; ++look) {
        nanosleep(&millisecond, NULL);
        threads = entries("/proc/self/task");
    }
    return threads;
}

/* To compare with later: whatever was joined before is gone from the list by then. */
static inline int settled_threads(void) {
    const struct timespec tenth = {0, 100000000};
    nanosleep(&tenth, NULL);
    return entries("/proc/self/task");
}

#endif
