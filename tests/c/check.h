/* What the test programs share: a check that counts, and pixels that look random and are the same everywhere. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "unet_fast.h"

static int failures = 0;

/* Prints the place and goes on; main returns `failures != 0`. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition,                  \
                    uf_last_error());                                                                                  \
            ++failures;                                                                                                \
        }                                                                                                              \
    } while (0)

/* The call must give that status, and a message that holds `text`. */
#define CHECK_FAILS(expected, text, call)                                                                              \
    do {                                                                                                               \
        const uf_status given = (call);                                                                                \
        if (given != (expected) || strstr(uf_last_error(), (text)) == NULL) {                                          \
            fprintf(stderr, "%s:%d: %s gives %s (%s), expected %s (...%s...)\n", __FILE__, __LINE__, #call,            \
                    uf_status_name(given), uf_last_error(), uf_status_name(expected), text);                           \
            ++failures;                                                                                                \
        }                                                                                                              \
    } while (0)

static inline void fill_with_noise(void *data, size_t size, uint32_t seed) {
    uint8_t *bytes = (uint8_t *)data;
    for (size_t i = 0; i < size; ++i) {
        seed = seed * 1664525U + 1013904223U;
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

#endif
