// The hot loops over uint8 activations, which int8_kernels.cpp holds once per instruction set, and how to call them.
//
// As kernels.h, this uses no inline function and no template of the standard library.
#pragma once

#include <stdint.h>

namespace uf {

// How these kernels see a tensor: *planes* of 4 bytes per pixel, either four neighbouring channels of uint8 or one
// channel of float32.  A vector is a run of pixels of one row, which the outputs of neighbouring pixels share with
// unaligned loads; weights are broadcast.  Four output channels make the plane that comes out, and their sums become
// its bytes without a shuffle between pixels.
constexpr int plane_outputs = 4;
constexpr int any_pair = 256; // two int8 of one sign

// What a word of weights had to leave out: see Int8Kernels::largest_pair.
struct ExcessWeight {
    int32_t plane, tap, output; // whose pixels it multiplies, and what of plane_outputs takes the product
    int32_t weights;            // int8 of four channels
};
struct ExcessList {
    // In the order of outputs.
    const ExcessWeight *first;
    int count;
};
struct ExcessLists {
    const ExcessWeight *all;
    const int64_t *begin; // of list i: all[begin[i]] to all[begin[i + 1]]
};

// Products of some taps with one input, over all of its planes.
struct PlaneTaps {
    const char *input; // plane 0
    int64_t plane_stride;
    int planes;
    const int64_t *pixels; // bytes from a plane to the first pixel of each vector of the block
    const int64_t *taps;   // bytes from there to each tap
    int tap_count;
    const char *weights; // [planes][taps][plane_outputs] words of 32 bits
    ExcessList excess;   // of int8
    // [plane_outputs], for kernels with `centred`: 128 times the sum of an output's weights.
    const int32_t *zeros;
};

// A block of pixel vectors times four output channels: output = (bias + sum over all taps) * multiplier.  Sums of uint8
// times int8 are int32 and exact; those of float32 add rounded products in the order of planes and taps, without fused
// multiply-adds, so that every instruction set gives the same bits.
struct PlaneBlock {
    // Interleaved: parts 0 and 1 compute the even and odd pixels of pairs of vectors, `pixels` naming one vector per
    // pair; the parts behind them, and all parts otherwise, compute the vectors as they lie.
    bool interleaved;
    int vectors; // 1 to most_vectors, even if interleaved
    const PlaneTaps *parts;
    int part_count;
    const void *bias; // [plane_outputs] int32, or float32 for float inputs
    // Added to lane 0 of the vectors in the set `first` (one bit each), and to `last_lane` of those in `last`.
    const int32_t *first_bias, *last_bias;
    uint32_t first, last;
    int last_lane;
    const float *multiplier; // [plane_outputs]
    bool to_bytes;           // rounded to nearest even and cut to 0..255; else float32, after ReLU where `relu`
    bool relu;
    char *output;                 // of uint8 one plane, of float32 plane_outputs of them
    int64_t output_plane_stride;  // for float32
    const int64_t *output_pixels; // bytes from `output` to each vector
};

// output[pixel] = maximum of 2x2 pixels of two rows of one uint8 plane.
struct PlanePool {
    const char *upper, *lower;
    char *output;
    int64_t pixels; // of the output; whole vectors are written
};

// logits[k] = bias[k] + sum over i of weight[k][i] * features[i], for whole vectors of pixels; products are rounded and
// added in order.
struct PlaneHead {
    const float *features;  // planes
    int64_t feature_stride; // floats from plane to plane, of features and logits
    const float *weight, *bias;
    int inputs, outputs;
    float *logits;
    int64_t pixels;
};

struct Int8WinogradKernels; // int8_winograd_kernels.h

struct Int8Kernels {
    const char *isa;
    int lanes;        // pixels in a vector
    int most_vectors; // even
    // The sum of products with channels 0 and 1 of a word has to fit 16 bits, and so has that with 2 and 3: two weights
    // of one sign may have this sum at most.  What is beyond it goes to a list, at most one weight of each two, and the
    // word keeps the rest.  `any_pair` where no sum is too large.
    int largest_pair;
    // The instructions multiply int8 with int8, so that pixels are taken as numbers 128 below them, and tiles at their
    // positions are kept so.
    bool centred;
    void (*convolve_bytes)(const PlaneBlock &block);
    void (*convolve_floats)(const PlaneBlock &block); // weights are one float32 per output, plane and tap
    void (*pool)(const PlanePool &pool);
    void (*head)(const PlaneHead &head);
    const Int8WinogradKernels *winograd;
};

const Int8Kernels *int8_kernels_portable();
#if defined(__x86_64__)
const Int8Kernels *int8_kernels_avx2();
const Int8Kernels *int8_kernels_avx2_vnni();
const Int8Kernels *int8_kernels_avx512();
const Int8Kernels *int8_kernels_avx512_vnni();
#elif defined(__aarch64__)
const Int8Kernels *int8_kernels_neon();
const Int8Kernels *int8_kernels_neon_dotprod();
const Int8Kernels *int8_kernels_neon_i8mm();
#endif

} // namespace uf
