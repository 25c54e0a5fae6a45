/* The structs of unet_fast.h as version 0.1 first had them, under names of their own.  Never changed: a program built
 * with that header must run with every later library of the same SONAME. */
#ifndef FIRST_LAYOUT_H
#define FIRST_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct first_options {
    size_t struct_size;
    const char *device, *precision, *cpu_isa;
    int32_t threads, refuse_embedded_code;
} first_options;

typedef struct first_image {
    size_t struct_size;
    const void *data;
    int32_t dtype, memory, count, height, width, channels;
    int64_t image_stride_bytes, row_stride_bytes, pixel_stride_bytes, channel_stride_bytes;
    float max_value;
} first_image;

typedef struct first_output {
    size_t struct_size;
    void *data;
    int32_t dtype, memory;
    int64_t image_stride_bytes, row_stride_bytes;
} first_output;

typedef struct first_run_options {
    size_t struct_size;
    int32_t tiling, tile, overlap;
    float threshold;
} first_run_options;

typedef struct first_info {
    size_t struct_size;
    int32_t channels, output_channels, output_kind, tile, multiple, remainder, minimum, margin, halo, threads, op_count;
    float threshold;
    const char *name, *device, *device_reason, *precision, *cpu_isa;
} first_info;

#endif
