// 3x3 convolutions with fewer multiplications, by Winograd's minimal filtering F(m x m, 3 x 3): 16 / 4 of them per
// output pixel and pair of channels for m = 2, 36 / 16 for m = 4, instead of 9.
//
// A *pass* takes the tiles of a batch, all images one after the other, in *ranges*: their windows are transformed, one
// product of matrices per position multiplies them with the weights, and its results are transformed back.  Where it
// can, a range goes through all of that one row of positions after the other, so that windows and products of a row
// are still in the first cache when they are read.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "activations.h"
#include "aligned_memory.h"
#include "convolution.h"
#include "kernels.h"
#include "plan.h"
#include "thread_pool.h"

namespace uf {

// One input: the window of the first tile begins at pixel (dy, dx), and its channels follow `first_channel` others.
struct WinogradSource {
    int input = 0;
    int channels = 0; // padded
    int first_channel = 0;
    int dy = 0, dx = 0;
};

// Output pixels (row + i * stride, column + j * stride), where the tiles lie on the grid of (i, j).
struct WinogradPhase {
    int row = 0, column = 0;
    int skipped_row = -1, skipped_column = -1; // of positions, whose weights are zero
    std::vector<unsigned char> columns;        // the others
    int64_t first_weight = 0;                  // of a channel block, in units of 32 bits of one output channel

    int64_t taps() const { return skipped_row < 0 ? 9 : 4; }
    bool skips(int position_row) const { return position_row == skipped_row; }
    // How many rows are not skipped, of those before `row`.
    int rows_before(int row) const { return row - (skipped_row >= 0 && skipped_row < row); }
};

struct WinogradConvolution {
    int tile = 0; // m
    Products products = Products::float32;
    bool transforms_late = false; // the weights, whenever they are used
    int lanes = 0;
    int channels = 0, padded_channels = 0; // of the output
    int stride = 1;
    std::vector<WinogradSource> sources;
    std::vector<WinogradPhase> phases;
    std::vector<ChannelBlock> blocks;
    int64_t units = 0;         // per tile and position
    int64_t block_weights = 0; // units of all positions (or taps) of all phases
    bool adds = false;         // to what the output holds
    // [block][phase][position][unit][vectors][lanes] of 32 bits; if they are transformed late, [block][phase][unit]
    // [tap][vectors][lanes].
    AlignedMemory weights;
    Epilogue epilogue;

    int window() const { return tile + 2; } // its side
    // Rows of positions whose weights are transformed together (WinogradWeights::row), of half as many pairs as rows.
    std::array<int, 2> row_pair(int pair) const {
        return pair == 0 ? std::array{0, window() - 1} : std::array{2 * pair - 1, 2 * pair};
    }
    // Output points of the grid for an output of that side.
    int64_t grid(int64_t side) const { return (side + stride - 1) / stride; }
    int64_t tiles_along(int64_t side) const { return (grid(side) + tile - 1) / tile; }
};

struct WinogradForm {
    int tile = 0; // m: 2 or 4
    Products products = Products::float32;
    // Weights at positions take up to four times the memory of the taps.  Where a layer has many channels and few
    // tiles, bringing them from memory takes longer than making them from the taps in the second cache: so it is done
    // for each pass.  Only with float32 products, and not in a head.
    bool transforms_late = false;
};

// Whether `op` is a 3x3 convolution that winograd.h can compute; an up_conv is two, of which the second adds to what
// the first gives.
bool has_winograd_form(const Op &op);

// The convolutions of such an op, in the forms that are given for each.
std::vector<WinogradConvolution> prepare_winograd(const Op &op, const std::vector<int> &channels,
                                                  const std::vector<WinogradForm> &forms, const KernelTable &kernels,
                                                  ThreadPool &pool);

// How the tiles of a pass are shared out among tasks.
struct WinogradSchedule {
    int64_t tile_rows = 0, tile_columns = 0; // of an image
    int64_t tiles = 0;                       // of all images
    int64_t band_rows = 0; // rows of tiles, of all images one after the other, that are worked on together
    int64_t range = 1;     // tiles of a task
    int64_t portion = 1;   // of these, those that go through a row of positions together
    bool whole = false;    // all windows of a band are transformed first, and a task is a range and a channel block;
                           // else a task does all for its range

    int64_t band_tiles() const { return band_rows * tile_columns; }
};

// `may_share`: that `whole` is possible.
WinogradSchedule schedule(const WinogradConvolution &convolution, int64_t images, int64_t height, int64_t width,
                          int threads, bool may_share);

// Neighbours in a row of tiles; `first` is their number among the tiles of the range, `number` that of the run.
struct TileRun {
    int64_t image, row, column, tiles, first, number;
};

// Calls body(run) for the runs that tiles [begin, end) fall into.
template <class Body>
void for_each_run(const WinogradSchedule &schedule, int64_t begin, int64_t end, const Body &body) {
    int64_t number = 0;
    for (int64_t tile = begin; tile < end; ++number) {
        const int64_t row = tile / schedule.tile_columns, column = tile % schedule.tile_columns;
        const int64_t tiles = std::min(schedule.tile_columns - column, end - tile);
        body(TileRun{row / schedule.tile_rows, row % schedule.tile_rows, column, tiles, tile - begin, number});
        tile += tiles;
    }
}

// Transformed windows, or products: [position][part][tile][channel of the part].  Windows have a part for so many
// channels as a product takes at once, so that it reads them in a row.
struct Positions {
    std::byte *data = nullptr;
    int64_t position_stride = 0, part_stride = 0, tile_stride = 0; // bytes

    Positions from(int64_t position, int64_t tile) const {
        return {data + position * position_stride + tile * tile_stride, position_stride, part_stride, tile_stride};
    }
};

// What lies between the two directions of a transform: [row of positions][column of pixels][channel], float32.
struct Lines {
    std::byte *data = nullptr;
    int64_t line_stride = 0, column_stride = 0; // bytes
    int64_t bytes = 0;

    Lines from(int64_t line, int64_t column) const {
        return {data + line * line_stride + column * column_stride, line_stride, column_stride, bytes};
    }
};

// The windows of so many tiles at all positions.
Positions window_layout(const WinogradConvolution &convolution, int64_t tiles, std::byte *data);
int64_t window_bytes(const WinogradConvolution &convolution, int64_t tiles);

// What a task works with, in memory that begins at `data`.
struct WinogradMemory {
    Lines input;                       // of the windows of a range
    Positions windows;                 // of a portion, at one row of positions
    std::byte *late_weights = nullptr; // at two rows of positions
    Positions products; // of a channel block, at one row, with late weights at two; at all if they are of many units
    Lines output;       // of a channel block and phase; others follow
    int64_t bytes = 0;

    WinogradMemory(const WinogradConvolution &convolution, const WinogradSchedule &schedule, std::byte *data);
};

// All windows of tiles [begin, end), at most a range of them, for a schedule with `whole`; `inputs` are those of the
// op.
void transform_windows(const WinogradConvolution &convolution, const KernelTable &kernels,
                       const WinogradSchedule &schedule, const Activations *const *inputs, int64_t begin, int64_t end,
                       const WinogradMemory &memory, const Positions &to);

// Where a run's results go.
struct WinogradTarget {
    std::byte *data = nullptr; // channel 0 of the first pixel of the run
    int64_t row_stride = 0, pixel_stride = 0;
    int64_t height = 0, width = 0; // of the image
    bool bf16 = false;
};

// The run's output pixels of that phase and channel block, from its lines.
void finish_run(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                const WinogradPhase &phase, const TileRun &run, const Lines &from, const WinogradTarget &target);

// Lines of output of a channel block and phase, from those windows.
void convolve_windows(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                      const WinogradPhase &phase, int64_t tiles, const Positions &windows,
                      const WinogradMemory &memory);

// Lines of output of all channel blocks and phases, from the input: for a schedule without `whole`.
void convolve_range(const WinogradConvolution &convolution, const KernelTable &kernels,
                    const WinogradSchedule &schedule, const Activations *const *inputs, int64_t begin, int64_t end,
                    const WinogradMemory &memory);

} // namespace uf
