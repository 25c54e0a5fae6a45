// The hot loops, which kernels.cpp holds once per instruction set, and how to call them.
//
// This header and kernels.cpp use no inline function and no template of the standard library: the linker keeps one
// copy of each of those, and must not find the one that was compiled for AVX-512 and run it elsewhere.
#pragma once

#include <stdint.h>

namespace uf {

// How kernels see a tensor: pixels of channels, each channel a number of 4 or 2 bytes.  A convolution reads its input
// in *units* of 32 bits, one float32 or two bf16 of neighbouring channels, and multiplies each with vectors of weights:
// one 32-bit lane per output channel, again one float32 or two bf16.
//
// One tap: a run of units of one input pixel (or of neighbouring pixels that lie without a gap), for each output pixel.
struct Tap {
    const void *input;    // first unit for the first output pixel
    int64_t pixel_stride; // bytes from there to the first unit for the next output pixel
    const void *weights;  // [units][vectors][lanes] of 32 bits, aligned to a vector
    int64_t units;
};

enum class KernelActivation { none, relu, leaky_relu };

// Output pixels of one row: output[pixel] = activation(bias + sum over taps and units of input * weight).  The order of
// the sum is that of the taps and units whatever the number of pixels, so a pixel's value depends on its inputs alone.
struct ConvRow {
    const Tap *taps;
    int tap_count;
    int vectors; // of output channels: a power of two, at most KernelTable::max_vectors
    int64_t pixels;
    // [vectors][lanes] for the first pixel, those between and the last; a single pixel takes the first.
    const float *bias_first, *bias, *bias_last;
    KernelActivation activation;
    float slope;
    bool output_is_bf16;   // else float32; rounded to nearest even
    void *output;          // aligned to a vector of its type
    int64_t output_stride; // bytes between output pixels
};

// output[pixel] = maximum of 2x2 pixels of two rows.
struct PoolRow {
    const void *upper, *lower; // 2 * pixels, same layout as the output
    void *output;
    int64_t pixels;
    int64_t pixel_stride; // bytes, of inputs and output
    int vectors;
};

struct KernelTable {
    const char *isa;
    int lanes;       // 32-bit numbers in a vector
    int max_vectors; // that ConvRow::vectors may be
    void (*conv_float32)(const ConvRow &row);
    void (*conv_bf16)(const ConvRow &row); // null: this instruction set has no bf16 product
    void (*pool_float32)(const PoolRow &row);
    void (*pool_bf16)(const PoolRow &row); // null where conv_bf16 is
};

const KernelTable *kernels_portable();
#if defined(__x86_64__)
const KernelTable *kernels_avx2();
const KernelTable *kernels_avx512();
const KernelTable *kernels_avx512_bf16();
#elif defined(__aarch64__)
const KernelTable *kernels_neon();
#endif

} // namespace uf
