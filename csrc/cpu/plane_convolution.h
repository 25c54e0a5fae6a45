// The ops that convolve over planes: int8 ones, and the stem that feeds them.
#pragma once

#include <array>
#include <vector>

#include "aligned_memory.h"
#include "excess_weights.h"
#include "int8_kernels.h"
#include "plan.h"
#include "planes.h"

namespace uf {

// Taps over one source; tap (dy, dx) of output pixel (y, x) reads (y + dy, x + dx), or with `halved` (y / 2 + dy,
// x / 2 + dx).
struct PlanePart {
    int source = 0, planes = 0;
    bool halved = false;
    std::vector<std::array<int, 2>> taps;
    int number = 0;           // of those of a group
    int64_t first_weight = 0; // bytes into the weights of a group
};

// A convolution with its weights packed.  A group is the four output channels of one plane.
struct PlaneConvolution {
    bool of_floats = false; // a stem: float32 planes, else uint8
    // Upsampling ones have other parts on even and odd rows, of which the first two are for even and odd columns.
    bool interleaved = false;
    std::vector<std::vector<PlanePart>> rows; // parts of output row y: rows[y % rows.size()]
    int channels = 0, groups = 0;             // of the output
    int64_t group_bytes = 0;
    AlignedMemory weights;      // [groups][parts][planes][taps][plane_outputs]
    int parts = 0;              // with weights of their own
    ExcessWeights excess;       // [groups][parts]
    std::vector<int32_t> zeros; // [groups][parts][plane_outputs], for kernels with `centred`: PlaneTaps::zeros
    bool border_bias = false;
    std::vector<int32_t> bias;           // [9 by first, middle, last row and column, or 1][groups * plane_outputs]
    std::vector<float> float_bias;       // instead, of a stem
    std::vector<float> multiplier;       // [groups * plane_outputs]
    bool to_bytes = false, relu = false; // else to float32
};

// `op` is a stem with uint8 output or an int8 op of the plan, checked by check_plan.
PlaneConvolution prepare_plane_convolution(const Op &op, const Plan &plan, const Int8Kernels &kernels);

// Rows [begin, end) of groups [first_group, last_group) of an output of height x width.
struct PlaneBand {
    int64_t image = 0;
    int first_group = 0, last_group = 0;
    int64_t begin = 0, end = 0, height = 0, width = 0;
};

// Where they go: each group to a plane of bytes, or to plane_outputs planes of floats.  Strides in bytes.
struct PlaneTarget {
    std::byte *data = nullptr; // pixel 0 of the first row, of the first group
    int64_t row_stride = 0, plane_stride = 0, group_stride = 0;
};

// Whole vectors are written.
void convolve_planes(const PlaneConvolution &convolution, const Int8Kernels &kernels, const Planes *const *sources,
                     const PlaneBand &band, const PlaneTarget &target);

// How many rows together make full blocks of vectors; even.
int64_t rows_for_full_blocks(const PlaneConvolution &convolution, const Int8Kernels &kernels, int64_t width);

} // namespace uf
