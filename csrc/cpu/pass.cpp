#include "pass.h"

#include "plain_ops.h"

namespace uf {

std::array<int, 2> convolved_size(const Op &op, const Activations *buffers) {
    if (!op.outputs.empty())
        return {buffers[op.outputs[0]].height, buffers[op.outputs[0]].width};
    const Activations &from = buffers[op.inputs[0]];
    return {from.height + op.padding[0] + op.padding[2] - op.kernel[0] + 1,
            from.width + op.padding[1] + op.padding[3] - op.kernel[1] + 1};
}

void pool_pair(const KernelTable &kernels, const Activations &from, const Activations &pooled,
               const ChannelBlock &block, int64_t image, int64_t y, int64_t begin, int64_t end) {
    const int64_t vector = kernels.lanes * static_cast<int64_t>(from.bf16 ? sizeof(Bf16) : sizeof(float));
    const int64_t channel = block.first_vector * vector;
    PoolRow row;
    row.upper = from.pixel(image, 2 * y, 2 * begin) + channel;
    row.lower = from.pixel(image, 2 * y + 1, 2 * begin) + channel;
    row.output = pooled.pixel(image, y, begin) + channel;
    row.pixels = end - begin;
    row.pixel_stride = from.pixel_stride;
    row.vectors = block.vectors;
    (from.bf16 ? kernels.pool_bf16 : kernels.pool_float32)(row);
    if (block.first_vector == 0 && begin == 0)
        pooled.clear_frame(image, y);
}

void head_row(const Plan &plan, const KernelTable &kernels, const Head &head, const Pass &pass, int64_t image,
              int64_t y, int64_t x, int64_t width, const std::byte *features, std::byte *memory) {
    auto *logits = reinterpret_cast<float *>(memory);
    compute_logits(head, kernels, features, width, logits);
    OutputView output = pass.outputs[image];
    const int channels = plan.output_channels;
    output.data += x * (output.type == ResultType::mask ? 1 : static_cast<int64_t>(sizeof(float)) * channels);
    write_result_row(plan.output_kind, channels, pass.logit_threshold, logits, head.logit_stride(), width, output, y);
}

} // namespace uf
