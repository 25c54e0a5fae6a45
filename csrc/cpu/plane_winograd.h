// Int8 convolutions in Winograd's form: F(2x2, 3x3) on bytes, as docs/design.md defines it.
#pragma once

#include <algorithm>
#include <vector>

#include "aligned_memory.h"
#include "excess_weights.h"
#include "int8_kernels.h"
#include "int8_winograd_kernels.h"
#include "plan.h"
#include "planes.h"

namespace uf {

// A convolution with its weights packed.  A group is the four output channels of one plane.
struct PlaneWinograd {
    // Groups whose sums are kept at a time: the positions of all planes are read once for each lot.
    static constexpr int lot = 4;
    int source = 0;                 // the input with 3x3 weights
    int planes = 0, low_planes = 0; // of it, and of the small tensor that is upsampled; 0 without one
    int groups = 0, lots = 0;       // of the output
    int64_t group_bytes = 0;
    // [lots], of which each holds [4 phases][phase_positions][groups][low_planes] of the small tensor, if there is one,
    // and [window_positions][groups][planes], of [plane_outputs] words.
    AlignedMemory weights;
    ExcessWeights excess; // a list for each position and group, in the same order
    bool border_bias = false;
    // Bias less what the 128 between numbers and bytes adds: [9 by first, middle, last row and column, or 1][groups]
    // [2 rows][2 columns][plane_outputs].
    std::vector<int32_t> bias;
    std::vector<int32_t> phase_constants; // likewise of the small tensor: [groups][4 phases][2][2][plane_outputs]
    std::vector<float> multiplier;        // [groups * plane_outputs]

    // Of lot `number`; of the one behind the last lot, the number of groups.
    int first_group(int number) const { return std::min(number * lot, groups); }
};

// `op` is an int8 op of the plan in Winograd's form, checked by check_plan.
PlaneWinograd prepare_plane_winograd(const Op &op, const Plan &plan, const Int8Kernels &kernels);

// How an output of some size is cut: bands of rows of pixels, whose tiles fill blocks of vectors, and what a worker
// needs for one of them.
struct WinogradBands {
    int64_t rows = 0, bands = 0; // of pixels in a band; in an image
    int64_t strip_rows = 0;      // of tiles whose sums are kept at a time
    // Bytes from plane to plane of the positions of a band, and from output to output of the sums of a strip; both of
    // the small tensor; bytes of one row of sums that are added, or of pixels.
    int64_t tile_stride = 0, sum_stride = 0, low_stride = 0, row_stride = 0;
    // Where things lie in the scratch memory, and its size.
    int64_t low_positions = 0, sums = 0, low_sums = 0, addends = 0, addend_stride = 0, spare_row = 0, bytes = 0;

    WinogradBands(const PlaneWinograd &convolution, int64_t height, int64_t width);
};

// Rows of band number `band` of lots [first_lot, last_lot) of `to`.  Whole vectors are written.
void convolve_winograd(const PlaneWinograd &convolution, const Int8Kernels &kernels, const Planes *const *sources,
                       const Planes &to, const WinogradBands &bands, int64_t image, int64_t band, int first_lot,
                       int last_lot, std::byte *scratch);

} // namespace uf
