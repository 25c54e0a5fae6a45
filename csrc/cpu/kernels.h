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

// logits[pixel] = bias + sum over channels of features[pixel][channel] * weights[channel]; the order of the sum is the
// same for each pixel.
struct LogitRow {
    const float *features; // [pixels][vectors][lanes], aligned to a vector
    const float *weights;  // [vectors][lanes], aligned to a vector
    float bias;
    int vectors;
    int64_t pixels;
    float *logits; // aligned to a vector, and written in whole vectors
};

// Winograd's minimal filtering, F(m x m, 3 x 3) with m = `tile` 2 or 4.  The output falls into tiles of m x m pixels,
// the input behind each of them is a window of (m + 2) x (m + 2).  A window is transformed to as many *positions*,
// which are numbered row by row; at each, a product of matrices over the input channels takes the place of the
// convolution; and the positions of a tile are transformed back.  Both transforms go along columns and along rows, one
// after the other; what lies between is called *lines*, one for each row of positions: [column of pixels][channel].
//
// What windows and weights are when they are multiplied.  Units hold one float32, or two channels of 16 bits.  Windows
// in fp16 are divided by fp16_divisor, so that pixels up to 50,000 stay finite (a window has up to 20 times as much),
// while those above 1e-3 keep all of their bits; fp16 sums of 32 channels are added in float32.
enum class Products { float32, bf16, fp16 };
constexpr int fp16_divisor = 16;

// Pixels -> lines, for a row of tiles: along the columns of their windows, which neighbours share.
struct WinogradInputColumns {
    int tile;
    const void *input;                // channel 0 of the first pixel of the first tile's window
    int64_t row_stride, pixel_stride; // bytes
    int64_t rows, columns;            // of pixels from that one on that exist; beyond them are zeros
    bool input_is_bf16;               // else float32
    bool prefetches;                  // what lies beyond the second cache
    int64_t tiles;
    int vectors;
    float *output;                      // channel 0 of the first column of line 0
    int64_t line_stride, column_stride; // bytes
};

// A line -> a row of positions.
struct WinogradInputRow {
    int tile;
    const float *input;    // [column][channel]
    int64_t column_stride; // bytes
    int64_t tiles;
    int vectors;
    void *output; // channel 0 of the first tile, at the first position of the row
    Products products;
    int64_t position_stride, tile_stride; // bytes
};

// At each position of a row, output[tile][channel] = sum over units of input[tile][unit] * weights[unit][channel].
struct WinogradProduct {
    const void *input;                    // [position][tile][unit] of 32 bits
    int64_t position_stride, tile_stride; // bytes
    // [number of the position in `positions`][unit][vectors][lanes] of 32 bits; the two weights of bf16 stand side by
    // side in a lane, fp16 has [unit][2][vectors][lanes] of 16 bits.
    const void *weights;
    int64_t weight_position_stride; // bytes
    const unsigned char *positions; // those of the row where weights are not all zero
    int position_count;
    int64_t tiles, units;
    int vectors;
    bool adds;                                          // to what the output holds
    float *output;                                      // [position][tile][vectors][lanes]
    int64_t output_position_stride, output_tile_stride; // bytes
    // What is read after this product, or after each of its positions: it is brought to the second cache meanwhile, a
    // little with every unit.
    const char *next;
    int64_t next_bytes;
};

// A row of positions -> a line: m columns for each tile.
struct WinogradOutputRow {
    int tile;
    int skipped_column;                   // of positions that the product left out: 0, m + 1 or -1 for none
    const float *input;                   // [position][tile][vectors][lanes]
    int64_t position_stride, tile_stride; // bytes
    int64_t tiles;
    int vectors;
    float *output;         // [column][vectors][lanes]
    int64_t column_stride; // bytes
};

// Lines -> output pixels, for a row of tiles.
struct WinogradOutputColumns {
    int tile;
    int skipped_row;                    // of positions that the product left out: 0, m + 1 or -1 for none
    const float *input;                 // first column of line 0
    int64_t line_stride, column_stride; // bytes
    int vectors;
    // [3][vectors of the whole output][lanes] for the first, the middle and the last column of the image, for each row
    // of the tiles; bias_stride is 0 where the three are the same.
    const float *bias[4];
    int64_t bias_stride; // floats
    bool first_column;   // whether the first pixel is in the first column of the image
    bool last_column;    // whether the last one is in the last column
    bool adds;           // to what the output holds, before the activation
    KernelActivation activation;
    float slope;
    bool output_is_bf16;
    void *output;                     // first pixel of the first tile
    int64_t row_stride, pixel_stride; // bytes
    int64_t rows, columns;            // of pixels: at most m rows
};

// Weights as they are in the convolution -> two rows of positions that are made of the same sums.  Where a row and a
// column of positions are skipped, the kernel is 2 x 2 and stands in that corner of one of 3 x 3 which makes them zero.
struct WinogradWeights {
    int tile;
    int row;                         // 0: the first and the last row; 1 (and 3): this one and the next
    int skipped_row, skipped_column; // 0, m + 1 or both -1 for none
    const float *weights;            // [unit][3 x 3 or 2 x 2][vectors][lanes]
    int64_t units;
    int vectors;
    // Of both rows: [number of the position among those that are not skipped][unit][vectors][lanes]; that of the
    // skipped row is null.
    float *outputs[2];
    int64_t position_stride; // bytes
};

struct WinogradKernels {
    void (*input_columns)(const WinogradInputColumns &columns);
    void (*input_row)(const WinogradInputRow &row);
    void (*product_float32)(const WinogradProduct &product);
    void (*product_bf16)(const WinogradProduct &product); // null where conv_bf16 is
    void (*product_fp16)(const WinogradProduct &product); // of an even number of vectors; null: there is none
    void (*output_row)(const WinogradOutputRow &row);
    void (*output_columns)(const WinogradOutputColumns &columns);
    void (*weights)(const WinogradWeights &weights);
};

struct KernelTable {
    const char *isa;
    int lanes;       // 32-bit numbers in a vector
    int max_vectors; // that ConvRow::vectors may be
    void (*conv_float32)(const ConvRow &row);
    void (*conv_bf16)(const ConvRow &row); // null: this instruction set has no bf16 product
    void (*pool_float32)(const PoolRow &row);
    void (*pool_bf16)(const PoolRow &row); // null where conv_bf16 is
    void (*logits)(const LogitRow &row);
    const WinogradKernels *winograd;
};

const KernelTable *kernels_portable();
#if defined(__x86_64__)
const KernelTable *kernels_avx2();
const KernelTable *kernels_avx512();
const KernelTable *kernels_avx512_bf16();
#elif defined(__aarch64__)
const KernelTable *kernels_neon();
const KernelTable *kernels_neon_fp16();
const KernelTable *kernels_neon_bf16();
#endif

} // namespace uf
