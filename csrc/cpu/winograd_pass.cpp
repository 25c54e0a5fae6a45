#include "winograd_pass.h"

#include <algorithm>

namespace uf {

WinogradPass::WinogradPass(const CpuProgram &program, const std::vector<Activations> &buffers, int group)
    : program_(program), buffers_(buffers.data()) {
    for (const PreparedOp &prepared : program.ops) {
        const Op &op = *prepared.op;
        std::vector<WinogradSchedule> &schedules = schedules_.emplace_back();
        for (const WinogradConvolution &convolution : prepared.winograd) {
            const auto [height, width] = convolved_size(op, buffers_);
            schedules.push_back(
                schedule(convolution, group, height, width, program.pool->threads(), op.kind != OpKind::head));
            if (schedules.back().whole) {
                transformed_size_ = std::max(
                    transformed_size_, static_cast<size_t>(window_bytes(convolution, schedules.back().band_tiles())));
            }
        }
    }
}

size_t WinogradPass::scratch_bytes() const {
    int64_t bytes = 0;
    for (const PreparedOp &prepared : program_.ops) {
        if (runs(prepared))
            bytes = std::max(bytes, winograd_scratch(prepared).bytes);
    }
    return static_cast<size_t>(bytes);
}

void WinogradPass::place(std::byte *transformed, std::byte *scratch, size_t scratch_size) {
    transformed_ = transformed;
    scratch_ = scratch;
    scratch_size_ = scratch_size;
}

const std::vector<WinogradSchedule> &WinogradPass::schedules_of(const PreparedOp &prepared) const {
    return schedules_[static_cast<size_t>(&prepared - program_.ops.data())];
}

WinogradPass::WinogradScratch WinogradPass::winograd_scratch(const PreparedOp &prepared) const {
    const std::vector<WinogradSchedule> &schedules = schedules_of(prepared);
    WinogradScratch result;
    for (size_t i = 0; i < schedules.size(); ++i)
        result.bytes = std::max(result.bytes, WinogradMemory(prepared.winograd[i], schedules[i], nullptr).bytes);
    if (prepared.op->kind == OpKind::head) {
        constexpr int64_t element = sizeof(float);
        const int64_t tile = prepared.winograd[0].tile, row = schedules[0].range * tile;
        result.features = result.bytes;
        result.logits = result.features + row * tile * prepared.winograd[0].padded_channels * element;
        result.bytes = result.logits + prepared.head.logit_bytes(row);
    }
    return result;
}

// Each convolution of the op in turn, band by band.
void WinogradPass::run(size_t index, const Pass &pass) const {
    const PreparedOp &prepared = program_.ops[index];
    const std::vector<WinogradSchedule> &schedules = schedules_[index];
    for (size_t number = 0; number < schedules.size(); ++number) {
        const WinogradSchedule &schedule = schedules[number];
        const int64_t tiles = pass.count * schedule.tile_rows * schedule.tile_columns;
        for (int64_t begin = 0; begin < tiles; begin += schedule.band_tiles())
            run_band(prepared, number, pass, begin, std::min(begin + schedule.band_tiles(), tiles));
    }
}

// Tiles [band_begin, band_end).
void WinogradPass::run_band(const PreparedOp &prepared, size_t number, const Pass &pass, int64_t band_begin,
                            int64_t band_end) const {
    const WinogradConvolution &convolution = prepared.winograd[number];
    const WinogradSchedule &schedule = schedules_of(prepared)[number];
    const KernelTable &kernels = *program_.kernels;
    const Op &op = *prepared.op;
    const Activations *inputs[2] = {&buffers_[op.inputs[0]], &buffers_[op.inputs.back()]};
    const int64_t ranges = (band_end - band_begin + schedule.range - 1) / schedule.range;
    const WinogradScratch parts = winograd_scratch(prepared);
    const auto begin_of = [&](int64_t range) { return band_begin + range * schedule.range; };
    const auto end_of = [&](int64_t range) { return std::min(begin_of(range + 1), band_end); };
    if (!schedule.whole) {
        program_.pool->run(ranges, [&](int64_t task, int worker) {
            const int64_t begin = begin_of(task), end = end_of(task);
            const WinogradMemory memory(convolution, schedule, scratch_of(worker));
            convolve_range(convolution, kernels, schedule, inputs, begin, end, memory);
            Lines lines = memory.output;
            for (const ChannelBlock &block : convolution.blocks) {
                for (const WinogradPhase &phase : convolution.phases) {
                    finish_range(prepared, number, block, phase, begin, end, lines,
                                 scratch_of(worker) + parts.features);
                    lines.data += lines.bytes;
                }
                finish_block(prepared, number, block, begin, end);
            }
            if (op.kind == OpKind::head)
                finish_head(prepared, pass, begin, end, scratch_of(worker) + parts.features,
                            scratch_of(worker) + parts.logits);
        });
        return;
    }
    const Positions windows = window_layout(convolution, schedule.band_tiles(), transformed_);
    program_.pool->run((band_end - band_begin) / schedule.tile_columns, [&](int64_t task, int worker) {
        const WinogradMemory memory(convolution, schedule, scratch_of(worker));
        const int64_t first = band_begin + task * schedule.tile_columns, last = first + schedule.tile_columns;
        for (int64_t begin = first; begin < last; begin += schedule.range) {
            transform_windows(convolution, kernels, schedule, inputs, begin, std::min(begin + schedule.range, last),
                              memory, windows.from(0, begin - band_begin));
        }
    });
    program_.pool->run(ranges * static_cast<int64_t>(convolution.blocks.size()), [&](int64_t task, int worker) {
        const int64_t begin = begin_of(task % ranges), end = end_of(task % ranges);
        const WinogradMemory memory(convolution, schedule, scratch_of(worker));
        const ChannelBlock &block = convolution.blocks[static_cast<size_t>(task / ranges)];
        for (const WinogradPhase &phase : convolution.phases) {
            convolve_windows(convolution, kernels, block, phase, end - begin, windows.from(0, begin - band_begin),
                             memory);
            finish_range(prepared, number, block, phase, begin, end, memory.output, nullptr);
        }
        finish_block(prepared, number, block, begin, end);
    });
}

// Output pixels of a channel block and phase, from its lines; in a head, to `features`.
void WinogradPass::finish_range(const PreparedOp &prepared, size_t number, const ChannelBlock &block,
                                const WinogradPhase &phase, int64_t begin, int64_t end, const Lines &lines,
                                std::byte *features) const {
    const WinogradConvolution &convolution = prepared.winograd[number];
    for_each_run(schedules_of(prepared)[number], begin, end, [&](const TileRun &run) {
        const WinogradTarget target = prepared.op->kind == OpKind::head ? head_target(prepared, run, features)
                                                                        : output_target(*prepared.op, convolution, run);
        finish_run(convolution, *program_.kernels, block, phase, run, lines, target);
    });
}

// What comes behind the last convolution of an op, for tiles that the caches still hold.
void WinogradPass::finish_block(const PreparedOp &prepared, size_t number, const ChannelBlock &block, int64_t begin,
                                int64_t end) const {
    if (number + 1 < prepared.winograd.size() || prepared.op->kind == OpKind::head)
        return;
    for_each_run(schedules_of(prepared)[number], begin, end,
                 [&](const TileRun &run) { frame_and_pool(*prepared.op, prepared.winograd[number], block, run); });
}

WinogradTarget WinogradPass::output_target(const Op &op, const WinogradConvolution &convolution,
                                           const TileRun &run) const {
    const Activations &to = buffers_[op.outputs[0]];
    const int64_t step = static_cast<int64_t>(convolution.tile) * convolution.stride;
    return {to.pixel(run.image, run.row * step, run.column * step),
            to.row_stride,
            to.pixel_stride,
            to.height,
            to.width,
            to.bf16};
}

// Features of the run's tiles, in rows as long as the run.
WinogradTarget WinogradPass::head_target(const PreparedOp &prepared, const TileRun &run, std::byte *features) const {
    const WinogradConvolution &convolution = prepared.winograd[0];
    const auto [height, width] = convolved_size(*prepared.op, buffers_);
    const int64_t pixel = convolution.padded_channels * static_cast<int64_t>(sizeof(float));
    const int64_t tile = convolution.tile;
    return {features + run.first * tile * tile * pixel, run.tiles * tile * pixel, pixel, height, width, false};
}

// Rows and columns of the output that a run covers.
void WinogradPass::frame_and_pool(const Op &op, const WinogradConvolution &convolution, const ChannelBlock &block,
                                  const TileRun &run) const {
    const Activations &to = buffers_[op.outputs[0]];
    const int64_t tile = convolution.tile, begin = run.row * tile;
    const int64_t end = std::min<int64_t>(begin + tile, to.height);
    if (block.first_vector == 0 && run.column == 0) {
        for (int64_t y = begin; y < end; ++y)
            to.clear_frame(run.image, y);
    }
    if (op.outputs.size() != 2)
        return;
    const int64_t first = run.column * tile, last = std::min<int64_t>(first + run.tiles * tile, to.width);
    for (int64_t y = begin; y < end; y += 2)
        pool_pair(*program_.kernels, to, buffers_[op.outputs[1]], block, run.image, y / 2, first / 2, last / 2);
}

void WinogradPass::finish_head(const PreparedOp &prepared, const Pass &pass, int64_t begin, int64_t end,
                               std::byte *features, std::byte *logits) const {
    const int64_t tile = prepared.winograd[0].tile;
    for_each_run(schedules_of(prepared)[0], begin, end, [&](const TileRun &run) {
        const WinogradTarget target = head_target(prepared, run, features);
        const int64_t first = run.row * tile, x = run.column * tile;
        for (int64_t y = first; y < std::min(first + tile, target.height); ++y) {
            head_row(*program_.plan, *program_.kernels, prepared.head, pass, run.image, y, x,
                     std::min(run.tiles * tile, target.width - x), target.data + (y - first) * target.row_stride,
                     logits);
        }
    });
}

} // namespace uf
