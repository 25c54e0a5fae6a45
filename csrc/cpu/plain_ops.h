// The ops that do not convolve, one row of output at a time; the compiler vectorises them.
#pragma once

#include "activations.h"
#include "executor.h"
#include "plan.h"

namespace uf {

// Computes row y of one image of the op's output, padding channels included; `buffers` are those of the plan.
using RowFunction = void (*)(const Op &op, const Activations *buffers, int64_t image, int64_t y);

// For pool, upsample, pad, concat, add, activation, affine and l2_normalise; null for other kinds.
RowFunction row_function(OpKind kind, bool bf16);

// Row y of the normalised image, into a row of `output`.
void normalise_row(const ImageView &image, const PixelTransform &transform, const Activations &output,
                   int64_t output_image, int64_t y);

// Row y of `input` magnified, without a frame: input.width * scale pixels at `output`.
void upsample_row(UpsampleMode mode, int scale, const Activations &input, int64_t image, int64_t y, std::byte *output);

// Turns one row of logits, `stride` floats from pixel to pixel, into row y of the result.
void write_result_row(OutputKind kind, int channels, float logit_threshold, const float *logits, int64_t stride,
                      int64_t width, const OutputView &output, int64_t y);

// Row y of `input` as float32, padding channels included.
void read_row(const Activations &input, int64_t image, int64_t y, float *output);

} // namespace uf
