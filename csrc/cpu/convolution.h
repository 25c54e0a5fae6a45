// Every op that convolves, brought into one form, with its weights packed for the kernels.
#pragma once

#include <vector>

#include "activations.h"
#include "aligned_memory.h"
#include "kernels.h"
#include "plan.h"
#include "thread_pool.h"

namespace uf {

// One input of a convolution.
struct ConvSource {
    int units = 0; // of 32 bits per pixel
    int step = 1;  // input pixels from one point of the phase's grid to the next
};

// A tap at grid point (i, j) reads `units` units from pixel (i * step + dy, j * step + dx) of its source on.  Taps side
// by side in a source whose pixels hold nothing but units are one long tap.
struct ConvTap {
    int source = 0;
    int dy = 0, dx = 0;
    int64_t units = 0;
    int64_t first_unit = 0; // in the packed weights of a channel block
};

// Output pixels (row + i * stride, column + j * stride): those that share taps and weights.
struct ConvPhase {
    int row = 0, column = 0;
    std::vector<ConvTap> taps;
};

struct ChannelBlock {
    int first_vector = 0, vectors = 0; // of output channels
};

// What happens to a sum before it is stored.
struct Epilogue {
    bool border_bias = false; // bias is [3][3][padded_channels] by first, middle, last row and column, else one vector
    AlignedMemory bias;
    KernelActivation activation = KernelActivation::none;
    float slope = 0.0F;
};

// A convolution, or several in turn: upsampling and transposed ones have one phase per position of an output pixel in
// its stride x stride cell, an ordinary one has a single phase.
struct Convolution {
    bool bf16 = false; // inputs and weights, else float32
    int lanes = 0;
    int channels = 0, padded_channels = 0; // of the output
    int stride_y = 1, stride_x = 1;
    std::vector<ConvSource> sources;
    std::vector<ConvPhase> phases;
    std::vector<ChannelBlock> blocks;
    int64_t units = 0;     // per output channel, all phases together
    AlignedMemory weights; // [block][units][vectors][lanes] of 32 bits
    Epilogue epilogue;
};

// The output channels in blocks as wide as kernels take them.
std::vector<ChannelBlock> channel_blocks(int padded_channels, const KernelTable &kernels);

// Bias and activation of an op that convolves.  Throws Error(UF_ERR_BAD_FILE) for an activation that is none of them.
Epilogue make_epilogue(const Op &op, const KernelTable &kernels);

// The weights of that name, `expected` of them and at least one, else throws Error(UF_ERR_BAD_FILE).
const float *values_of(const Op &op, const char *name, int64_t expected);

// How many channels the convolution of `op` gives.
int64_t output_channels(const Op &op);

// The class of a row or column in a bias by borders: 0 for the first, 2 for the last, 1 for all between.
inline int64_t border_class(int64_t position, int64_t size) { return position == 0 ? 0 : position == size - 1 ? 2 : 1; }

// Zero pixels that `op` reads around its input number `input`.
int required_halo(const Op &op, int input);

// `op` is a stem, conv, up_conv, concat_conv, head (its convolution only) or conv_transpose; `channels` those of its
// inputs.  A stem reads float32, and a pixel is its channels alone; all other inputs are padded to whole vectors.
// Throws Error(UF_ERR_BAD_FILE) if a weight is missing or of the wrong size.
Convolution prepare_convolution(const Op &op, const std::vector<int> &channels, bool bf16, const KernelTable &kernels,
                                ThreadPool &pool);

// What stands behind the convolution of a head: 1x1, in float32.
struct Head {
    int lanes = 0;
    int vectors = 0;         // of features
    AlignedMemory weights;   // of a single output: [vectors][lanes]
    float bias = 0.0F;       // likewise
    Convolution convolution; // to several outputs

    bool single() const { return vectors > 0; }
    int64_t logit_stride() const { return single() ? 1 : convolution.padded_channels; } // floats from pixel to pixel
    int64_t logit_bytes(int64_t pixels) const;                                          // to be aligned to a vector
};

// The head of `op`, from its `channels` to the `outputs` of the network.
Head prepare_head(const Op &op, int channels, int outputs, const KernelTable &kernels, ThreadPool &pool);

// The logits of `pixels` of features in float32, whose channels are padded to whole vectors.
void compute_logits(const Head &head, const KernelTable &kernels, const std::byte *features, int64_t pixels,
                    float *logits);

// Where a row of a convolution reads.
struct ConvInput {
    const std::byte *data = nullptr; // pixel (0, 0) of the image
    int64_t row_stride = 0, pixel_stride = 0;
};

// Computes row y of an output of height x width for one channel block into `output`, which is channel 0 of the row's
// first pixel.
void convolve_row(const Convolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                  const ConvInput *inputs, int64_t y, int64_t height, int64_t width, bool output_is_bf16,
                  std::byte *output, int64_t output_stride);

} // namespace uf
