// The hot loops of Winograd's form of int8 convolutions, F(2x2, 3x3) on bytes, as docs/design.md defines it.
// int8_winograd_kernels.cpp holds them once per instruction set.
//
// A vector is a run of tiles: lane t holds four channels of tile t.  Tiles are numbered row by row through a band, so
// that narrow images fill vectors too.  Whole vectors are written: what lies behind the last tile is overwritten.
//
// Numbers below zero are kept as bytes, 128 above themselves, where the instructions multiply uint8 pixels; where they
// multiply int8 (`centred`), numbers are kept as they are, and the bytes of the position that averages pixels 128
// below; what that adds to a sum is known from the weights and in the constants of the `finish` functions.
//
// As kernels.h, this uses no inline function and no template of the standard library.
#pragma once

#include <stdint.h>

#include "int8_kernels.h"

namespace uf {

constexpr int window_positions = 16; // [4][4] of a 4x4 window
// The windows of the four phases of an upsampled tensor share 5 x 5 positions: phase p has its three from 2 p on.
constexpr int low_positions = 25, phase_positions = 9, low_side = 5;

// One row of tiles: windows of pixels that begin two pixels apart become positions.
struct TileWindows {
    const char *input; // first pixel of the first window, in plane 0
    int64_t row_stride, plane_stride;
    int planes;
    int64_t tiles;
    char *output; // the first tile at position 0 of plane 0
    int64_t position_stride, output_plane_stride;
};

// Sums at [side][side] positions, for groups of plane_outputs outputs: over all planes, tiles times weights.
struct TileProduct {
    // Plane 0 of the first position.  Planes are `plane_stride` bytes apart, positions `planes` of them, and rows of
    // positions `row_positions` positions.
    const char *input;
    int side, row_positions, planes;
    int64_t plane_stride;
    int groups;
    const char *weights; // [side][side][groups][planes][plane_outputs] words of int8
    ExcessLists excess;  // [side][side][groups]
    int64_t vectors;
    char *sums; // int32: [groups][side][side][plane_outputs], `output_stride` bytes apart
    int64_t output_stride;
};

// Sums of one row of tiles at all positions become two rows of pixels of one plane.
struct TileOutputs {
    const char *sums; // of position 0 and output 0
    int64_t position_stride, output_stride;
    // Further sums, of pixel (a, b) of each tile at [2 a + b][output]; null without.
    const char *addends;
    int64_t pixel_stride, addend_output_stride;
    int64_t tiles;
    const int32_t *bias; // [2 rows][2 columns][plane_outputs]
    // Added to the left pixels of the first tile and to the right ones of the last, [2 rows][plane_outputs]; or null.
    const int32_t *first_bias, *last_bias;
    const float *multiplier; // [plane_outputs]
    char *upper, *lower;     // bytes
};

// Sums of one row of tiles of the small tensor, at the positions of one phase, become sums of the tiles behind it: each
// gives two rows of two.
struct PhaseOutputs {
    const char *sums;
    int64_t position_stride, output_stride;
    int64_t tiles;
    const int32_t *constants; // [2 rows][2 columns][plane_outputs]
    char *upper, *lower;      // of output 0; int32
    int64_t result_stride;    // from output to output
};

struct Int8WinogradKernels {
    void (*transform)(const TileWindows &windows);     // 4x4 windows to window_positions
    void (*transform_low)(const TileWindows &windows); // the same windows to low_positions
    void (*multiply)(const TileProduct &product);
    void (*finish)(const TileOutputs &outputs);
    void (*finish_phase)(const PhaseOutputs &outputs);
};

} // namespace uf
