// A pass as the parts of the CPU executor see it, and what direct and Winograd's convolutions have in common in it.
#pragma once

#include <array>

#include "activations.h"
#include "convolution.h"
#include "executor.h"
#include "kernels.h"
#include "plan.h"

namespace uf {

// What Context::run is given, for the images that go through the ops together.
struct Pass {
    const ImageView *images;
    const PixelTransform *transforms;
    int count;
    float logit_threshold;
    const OutputView *outputs;
};

// Height and width of what `op` convolves to; `buffers` are those of the plan.
std::array<int, 2> convolved_size(const Op &op, const Activations *buffers);

// Pixels [begin, end) of row y of `pooled`, for one channel block, from the two rows of `from` that were just written.
void pool_pair(const KernelTable &kernels, const Activations &from, const Activations &pooled,
               const ChannelBlock &block, int64_t image, int64_t y, int64_t begin, int64_t end);

// The result from pixel (y, x) on, from a row of `features`, with memory for the logits behind them.
void head_row(const Plan &plan, const KernelTable &kernels, const Head &head, const Pass &pass, int64_t image,
              int64_t y, int64_t x, int64_t width, const std::byte *features, std::byte *memory);

} // namespace uf
