#include "cpu_executor.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "activations.h"
#include "aligned_memory.h"
#include "convolution.h"
#include "cpu_features.h"
#include "cpu_profile.h"
#include "error.h"
#include "int8_pass.h"
#include "machine_peak.h"
#include "message.h"
#include "plain_ops.h"
#include "winograd.h"
#include "winograd_choice.h"

namespace uf {
namespace {

bool convolves(OpKind kind) {
    switch (kind) {
    case OpKind::stem:
    case OpKind::conv:
    case OpKind::up_conv:
    case OpKind::concat_conv:
    case OpKind::head:
    case OpKind::conv_transpose:
        return true;
    default:
        return false;
    }
}

struct PreparedOp {
    const Op *op = nullptr;                    // of the plan
    std::vector<WinogradConvolution> winograd; // one after the other; where there is none, `convolution`
    Convolution convolution;
    Head head;                          // behind the convolution of a head
    RowFunction row_function = nullptr; // for the plain ops
};

// All that contexts share.
struct Program {
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<ThreadPool> pool;
    const KernelTable *kernels = nullptr;
    bool bf16 = false;
    bool has_stem = false;
    std::vector<int> halos; // per buffer: zero pixels that its readers need
    std::vector<PreparedOp> ops;
    std::unique_ptr<const Int8Program> int8; // null where the plan has no uint8
};

bool choose_bf16(const std::string &precision, const std::string &plan_precision, const KernelTable &kernels) {
    const bool available = kernels.conv_bf16 != nullptr;
    if (precision == "auto")
        return available && plan_precision != "float32";
    if (precision == "bf16" && !available)
        throw Error(UF_ERR_UNSUPPORTED, message("precision bf16 needs a CPU with AVX-512 BF16, and the instruction set "
                                                "in use is ",
                                                kernels.isa, "; here, use auto or float32"));
    return precision == "bf16";
}

// Output rows of one task.  A pooled row needs two; rows that share upsampled input amortise it.
int rows_per_task(const Op &op) {
    if (op.kind == OpKind::concat_conv && op.upsample != UpsampleMode::none)
        return 8;
    return op.outputs.size() == 2 ? 2 : 1;
}

class CpuContext final : public Context {
  public:
    CpuContext(std::shared_ptr<const Program> program, const PassShape &shape)
        : program_(std::move(program)), shape_(shape) {
        lay_out_buffers();
        choose_group();
        if (program_->int8)
            int8_.emplace(*program_->int8, PassShape{group_, shape_.height, shape_.width}, program_->halos);
        reserve_slots();
        schedule_winograd();
        allocate();
    }

    PassShape shape() const override { return shape_; }
    double bytes() const override { return static_cast<double>(arena_bytes_ + unseen_.capacity()); }

    void warm(const std::atomic<int> &calls) override {
        const Plan &plan = *program_->plan;
        const int64_t row = static_cast<int64_t>(shape_.width) * plan.output_channels * int64_t{sizeof(float)};
        const size_t count = static_cast<size_t>(shape_.count), bytes = static_cast<size_t>(row * shape_.height);
        unseen_.resize(bytes * count);
        // Strides of 0: every pixel is this one.
        static constexpr std::byte black{};
        const std::vector<ImageView> images(count, ImageView{&black});
        const std::vector<PixelTransform> transforms(count);
        std::vector<OutputView> outputs(count);
        for (size_t image = 0; image < count; ++image)
            outputs[image] = {unseen_.data() + image * bytes, ResultType::probability, row};
        calls_ = &calls;
        run(images.data(), transforms.data(), shape_.count, 0.0F, outputs.data(), nullptr);
        calls_ = nullptr;
    }

    double *op_seconds = nullptr; // where `run` writes the time of each op; null: nowhere

    void run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
             const OutputView *outputs, void *) override {
        if (op_seconds != nullptr)
            std::fill_n(op_seconds, program_->ops.size(), 0.0);
        for (int first = 0; first < count; first += group_) {
            run_group({images + first, transforms + first, std::min(group_, count - first), logit_threshold,
                       outputs + first});
        }
    }

  private:
    struct Pass {
        const ImageView *images;
        const PixelTransform *transforms;
        int count;
        float logit_threshold;
        const OutputView *outputs;
    };

    void run_group(const Pass &pass) {
        for (const PreparedOp &prepared : program_->ops) {
            if (calls_ != nullptr && *calls_ != 0)
                return;
            const OpTimer timer(op_seconds, static_cast<size_t>(&prepared - program_->ops.data()));
            if (!prepared.winograd.empty()) {
                winograd(prepared, pass);
                continue;
            }
            if (Int8Program::runs(*prepared.op)) {
                int8_->run(static_cast<size_t>(&prepared - program_->ops.data()),
                           {pass.images, pass.transforms, pass.count, pass.logit_threshold, pass.outputs},
                           buffers_.data(), *program_->pool, scratch_, scratch_size_);
                continue;
            }
            switch (prepared.op->kind) {
            case OpKind::stem:
                normalise(pass, image_);
                convolve(prepared, pass);
                break;
            case OpKind::conv:
            case OpKind::up_conv:
            case OpKind::concat_conv:
            case OpKind::conv_transpose:
                convolve(prepared, pass);
                break;
            case OpKind::head:
                head(prepared, pass);
                break;
            case OpKind::normalise:
                normalise(pass, buffers_[prepared.op->outputs[0]]);
                break;
            case OpKind::output:
                output(prepared, pass);
                break;
            default:
                plain(prepared, pass);
                break;
            }
        }
    }

    void lay_out_buffers() {
        const Program &program = *program_;
        for (size_t i = 0; i < program.plan->buffers.size(); ++i) {
            const Buffer &buffer = program.plan->buffers[i];
            Activations layout;
            layout.height = checked_side(buffer, buffer.height.at(shape_.height));
            layout.width = checked_side(buffer, buffer.width.at(shape_.width));
            layout.channels = buffer.channels;
            layout.padded_channels = round_up(buffer.channels, program.kernels->lanes);
            layout.halo = program.halos[i];
            layout.bf16 = program.bf16;
            layout.lay_out();
            buffers_.push_back(layout);
        }
        image_ = buffers_[0];
        image_.padded_channels = image_.channels;
        image_.bf16 = false;
        image_.lay_out();
    }

    // Height and width of what `op` convolves to.
    std::array<int, 2> convolved_size(const Op &op) const {
        if (!op.outputs.empty())
            return {buffers_[op.outputs[0]].height, buffers_[op.outputs[0]].width};
        const Activations &from = buffers_[op.inputs[0]];
        return {from.height + op.padding[0] + op.padding[2] - op.kernel[0] + 1,
                from.width + op.padding[1] + op.padding[3] - op.kernel[1] + 1};
    }

    // As many images as the shared cache may hold go through the ops together, for the sake of small ones; each pass
    // over more of them would fetch from memory what the last one left there (relunet16 at batch 8: 10 % slower).
    void choose_group() {
        constexpr int64_t cache_bytes = 16 << 20;
        double image_bytes = 1; // of many buffers, each of which fits 64 bits
        for (const Activations &layout : buffers_)
            image_bytes += static_cast<double>(layout.image_stride);
        group_ =
            static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(cache_bytes / image_bytes), 1, shape_.count));
    }

    void schedule_winograd() {
        for (const PreparedOp &prepared : program_->ops) {
            const Op &op = *prepared.op;
            std::vector<WinogradSchedule> &schedules = schedules_.emplace_back();
            for (const WinogradConvolution &convolution : prepared.winograd) {
                const auto [height, width] = convolved_size(op);
                schedules.push_back(
                    schedule(convolution, group_, height, width, program_->pool->threads(), op.kind != OpKind::head));
                if (schedules.back().whole) {
                    transformed_size_ =
                        std::max(transformed_size_,
                                 static_cast<size_t>(window_bytes(convolution, schedules.back().band_tiles())));
                }
            }
        }
    }

    // Where so many bytes of the arena begin.
    size_t reserve(size_t bytes) {
        const size_t offset = arena_bytes_;
        arena_bytes_ += aligned(bytes);
        require_memory(shape_, static_cast<double>(arena_bytes_));
        return offset;
    }

    void reserve_slots() {
        const Program &program = *program_;
        std::vector<size_t> slot_sizes(static_cast<size_t>(program.plan->slots), 0);
        for (size_t i = 1; i < buffers_.size(); ++i) {
            size_t &size = slot_sizes[static_cast<size_t>(program.plan->buffers[i].slot)];
            size =
                std::max(size, program.plan->buffers[i].scale > 0.0F ? int8_->buffer_bytes(i) : bytes_of(buffers_[i]));
        }
        for (const size_t size : slot_sizes)
            slot_offsets_.push_back(reserve(size));
    }

    // One arena: slots, the normalised image if a stem reads it, transformed windows that all workers share, scratch of
    // each of them.
    void allocate() {
        const Program &program = *program_;
        const size_t image_offset =
            reserve(program.has_stem ? std::max(bytes_of(image_), int8_ ? int8_->image_bytes() : 0) : 0);
        const size_t transformed_offset = reserve(transformed_size_);
        for (const PreparedOp &prepared : program.ops)
            scratch_size_ = std::max(scratch_size_, aligned(scratch_bytes(prepared)));
        if (int8_)
            scratch_size_ = std::max(scratch_size_, aligned(int8_->scratch_bytes()));
        const size_t scratch_offset = reserve(scratch_size_ * static_cast<size_t>(program.pool->threads()));

        arena_ = AlignedMemory(arena_bytes_);
        constexpr size_t piece = size_t{1} << 20;
        program.pool->run(static_cast<int64_t>((arena_bytes_ + piece - 1) / piece), [&](int64_t task, int) {
            const size_t begin = static_cast<size_t>(task) * piece;
            std::memset(arena_.data() + begin, 0, std::min(piece, arena_bytes_ - begin));
        });

        for (size_t i = 1; i < buffers_.size(); ++i) {
            std::byte *const slot = arena_.data() + slot_offsets_[static_cast<size_t>(program.plan->buffers[i].slot)];
            buffers_[i].data = slot + buffers_[i].offset();
            if (int8_)
                int8_->place_buffer(i, slot);
        }
        if (int8_)
            int8_->place_image(arena_.data() + image_offset);
        image_.data = arena_.data() + image_offset + image_.offset();
        transformed_ = arena_.data() + transformed_offset;
        scratch_ = arena_.data() + scratch_offset;
    }

    // So bounded, the bytes of one image fit 64 bits by far.
    static int checked_side(const Buffer &buffer, int64_t side) {
        constexpr int64_t longest = 1 << 20;
        if (side >= 1 && side <= longest)
            return static_cast<int>(side);
        throw Error(UF_ERR_OUT_OF_MEMORY, "tensor '" + buffer.name + "' would have a side of " + std::to_string(side) +
                                              " pixels, at most " + std::to_string(longest) +
                                              " are possible; use smaller tiles");
    }

    static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

    size_t bytes_of(const Activations &layout) const { return static_cast<size_t>(layout.image_stride * group_); }

    // Per worker.
    size_t scratch_bytes(const PreparedOp &prepared) const {
        const Op &op = *prepared.op;
        if (Int8Program::runs(op))
            return 0; // it has its own
        if (!prepared.winograd.empty())
            return static_cast<size_t>(winograd_scratch(prepared, schedules_of(prepared)).bytes);
        if (op.kind == OpKind::head)
            return static_cast<size_t>(feature_row(prepared).row_stride +
                                       prepared.head.logit_bytes(convolved_size(op)[1]));
        if (op.kind == OpKind::output) {
            const Activations &from = buffers_[op.inputs[0]];
            return sizeof(float) * static_cast<size_t>(from.width) * static_cast<size_t>(from.padded_channels);
        }
        if (op.kind == OpKind::concat_conv && op.upsample != UpsampleMode::none) {
            const Activations band = upsampled_band(op);
            return static_cast<size_t>(band.row_stride * band.height);
        }
        return 0;
    }

    // One row of what a head convolves to.
    Activations feature_row(const PreparedOp &prepared) const {
        Activations row;
        row.height = 1;
        row.width = convolved_size(*prepared.op)[1];
        row.padded_channels = prepared.convolution.padded_channels;
        row.lay_out();
        return row;
    }

    // The rows of an upsampled input that one task reads, with the zero padding left and right of them.
    Activations upsampled_band(const Op &op) const {
        Activations band = buffers_[op.inputs[0]];
        band.height = rows_per_task(op) + op.kernel[0] - 1;
        band.width = 2 * band.width + op.padding[1] + op.padding[3];
        band.halo = 0;
        band.lay_out();
        return band;
    }

    void normalise(const Pass &pass, const Activations &to) {
        program_->pool->run(static_cast<int64_t>(pass.count) * to.height, [&](int64_t task, int) {
            const int64_t image = task / to.height, y = task % to.height;
            normalise_row(pass.images[image], pass.transforms[image], to, image, y);
            to.clear_frame(image, y);
        });
    }

    void plain(const PreparedOp &prepared, const Pass &pass) {
        const Activations &to = buffers_[prepared.op->outputs[0]];
        program_->pool->run(static_cast<int64_t>(pass.count) * to.height, [&](int64_t task, int) {
            const int64_t image = task / to.height, y = task % to.height;
            prepared.row_function(*prepared.op, buffers_.data(), image, y);
            to.clear_frame(image, y);
        });
    }

    static ConvInput input_of(const Activations &from, int64_t image) {
        return {from.pixel(image, 0, 0), from.row_stride, from.pixel_stride};
    }

    // Upsamples what output rows [begin, end) read and returns it as if it were the whole upsampled image.
    ConvInput upsample_band(const Op &op, int64_t image, int64_t begin, int64_t end, std::byte *scratch) const {
        const Activations &from = buffers_[op.inputs[0]];
        const Activations band = upsampled_band(op);
        const int64_t first = begin - op.padding[0], rows = end - begin + op.kernel[0] - 1;
        const auto left = static_cast<size_t>(op.padding[1] * band.pixel_stride);
        const auto right = static_cast<size_t>(op.padding[3] * band.pixel_stride);
        for (int64_t row = 0; row < rows; ++row) {
            std::byte *to = scratch + row * band.row_stride;
            if (first + row < 0 || first + row >= 2 * static_cast<int64_t>(from.height)) {
                std::memset(to, 0, static_cast<size_t>(band.row_stride));
                continue;
            }
            std::memset(to, 0, left);
            upsample_row(op.upsample, 2, from, image, first + row, to + left);
            std::memset(to + band.row_stride - right, 0, right);
        }
        return {scratch - first * band.row_stride + left, band.row_stride, band.pixel_stride};
    }

    // Tasks are channel blocks (outermost, so that a block's weights stay in cache), images and groups of rows.
    void convolve(const PreparedOp &prepared, const Pass &pass) {
        const Op &op = *prepared.op;
        const Convolution &convolution = prepared.convolution;
        const KernelTable &kernels = *program_->kernels;
        const Activations &to = buffers_[op.outputs[0]];
        const bool upsamples = op.kind == OpKind::concat_conv && op.upsample != UpsampleMode::none;
        const int64_t group = rows_per_task(op), groups = (to.height + group - 1) / group;
        const int64_t per_block = pass.count * groups;

        program_->pool->run(per_block * static_cast<int64_t>(convolution.blocks.size()), [&](int64_t task, int worker) {
            const ChannelBlock &block = convolution.blocks[static_cast<size_t>(task / per_block)];
            const int64_t image = task % per_block / groups, begin = task % groups * group;
            const int64_t end = std::min<int64_t>(begin + group, to.height);
            ConvInput inputs[2];
            for (size_t i = 0; i < op.inputs.size(); ++i) {
                inputs[i] = input_of(op.kind == OpKind::stem ? image_ : buffers_[op.inputs[i]], image);
            }
            if (upsamples)
                inputs[0] = upsample_band(op, image, begin, end, scratch_of(worker));
            for (int64_t y = begin; y < end; ++y) {
                convolve_row(convolution, kernels, block, inputs, y, to.height, to.width, to.bf16,
                             to.pixel(image, y, 0), to.pixel_stride);
                if (block.first_vector == 0)
                    to.clear_frame(image, y);
            }
            if (op.outputs.size() == 2)
                pool_pair(to, buffers_[op.outputs[1]], block, image, begin / 2, 0, to.width / 2);
        });
    }

    // Pixels [begin, end) of row y of `pooled`, for one channel block, from the two rows of `from` that were just
    // written.
    void pool_pair(const Activations &from, const Activations &pooled, const ChannelBlock &block, int64_t image,
                   int64_t y, int64_t begin, int64_t end) const {
        const KernelTable &kernels = *program_->kernels;
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

    void head(const PreparedOp &prepared, const Pass &pass) {
        const KernelTable &kernels = *program_->kernels;
        const Activations &from = buffers_[prepared.op->inputs[0]];
        const Activations features = feature_row(prepared);
        const auto [height, width] = convolved_size(*prepared.op);

        program_->pool->run(static_cast<int64_t>(pass.count) * height,
                            [&, height = height, width = width](int64_t task, int worker) {
                                const int64_t image = task / height, y = task % height;
                                std::byte *row = scratch_of(worker);
                                const ConvInput input = input_of(from, image);
                                for (const ChannelBlock &block : prepared.convolution.blocks) {
                                    convolve_row(prepared.convolution, kernels, block, &input, y, height, width, false,
                                                 row, features.pixel_stride);
                                }
                                head_row(prepared, pass, image, y, 0, width, row, row + features.row_stride);
                            });
    }

    // The result from pixel (y, x) on, from a row of `features`, with memory for the logits behind them.
    void head_row(const PreparedOp &prepared, const Pass &pass, int64_t image, int64_t y, int64_t x, int64_t width,
                  const std::byte *features, std::byte *memory) const {
        auto *logits = reinterpret_cast<float *>(memory);
        compute_logits(prepared.head, *program_->kernels, features, width, logits);
        OutputView output = pass.outputs[image];
        const int channels = program_->plan->output_channels;
        output.data += x * (output.type == ResultType::mask ? 1 : static_cast<int64_t>(sizeof(float)) * channels);
        write_result_row(program_->plan->output_kind, channels, pass.logit_threshold, logits,
                         prepared.head.logit_stride(), width, output, y);
    }

    void output(const PreparedOp &prepared, const Pass &pass) {
        const Activations &from = buffers_[prepared.op->inputs[0]];
        program_->pool->run(static_cast<int64_t>(pass.count) * from.height, [&](int64_t task, int worker) {
            const int64_t image = task / from.height, y = task % from.height;
            auto *logits = reinterpret_cast<float *>(scratch_of(worker));
            read_row(from, image, y, logits);
            write_result_row(program_->plan->output_kind, program_->plan->output_channels, pass.logit_threshold, logits,
                             from.padded_channels, from.width, pass.outputs[image], y);
        });
    }

    const std::vector<WinogradSchedule> &schedules_of(const PreparedOp &prepared) const {
        return schedules_[static_cast<size_t>(&prepared - program_->ops.data())];
    }

    // In a worker's scratch: what a Winograd convolution works with, then features and logits of a head.
    struct WinogradScratch {
        int64_t features = 0, logits = 0, bytes = 0;
    };

    WinogradScratch winograd_scratch(const PreparedOp &prepared, const std::vector<WinogradSchedule> &schedules) const {
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
    void winograd(const PreparedOp &prepared, const Pass &pass) {
        const std::vector<WinogradSchedule> &schedules = schedules_of(prepared);
        for (size_t number = 0; number < schedules.size(); ++number) {
            const WinogradSchedule &schedule = schedules[number];
            const int64_t tiles = pass.count * schedule.tile_rows * schedule.tile_columns;
            for (int64_t begin = 0; begin < tiles; begin += schedule.band_tiles())
                winograd_band(prepared, number, pass, begin, std::min(begin + schedule.band_tiles(), tiles));
        }
    }

    // Tiles [band_begin, band_end).
    void winograd_band(const PreparedOp &prepared, size_t number, const Pass &pass, int64_t band_begin,
                       int64_t band_end) {
        const WinogradConvolution &convolution = prepared.winograd[number];
        const WinogradSchedule &schedule = schedules_of(prepared)[number];
        const KernelTable &kernels = *program_->kernels;
        const Op &op = *prepared.op;
        const Activations *inputs[2] = {&buffers_[op.inputs[0]], &buffers_[op.inputs.back()]};
        const int64_t ranges = (band_end - band_begin + schedule.range - 1) / schedule.range;
        const WinogradScratch parts = winograd_scratch(prepared, schedules_of(prepared));
        const auto begin_of = [&](int64_t range) { return band_begin + range * schedule.range; };
        const auto end_of = [&](int64_t range) { return std::min(begin_of(range + 1), band_end); };
        if (!schedule.whole) {
            program_->pool->run(ranges, [&](int64_t task, int worker) {
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
        program_->pool->run((band_end - band_begin) / schedule.tile_columns, [&](int64_t task, int worker) {
            const WinogradMemory memory(convolution, schedule, scratch_of(worker));
            const int64_t first = band_begin + task * schedule.tile_columns, last = first + schedule.tile_columns;
            for (int64_t begin = first; begin < last; begin += schedule.range) {
                transform_windows(convolution, kernels, schedule, inputs, begin, std::min(begin + schedule.range, last),
                                  memory, windows.from(0, begin - band_begin));
            }
        });
        program_->pool->run(ranges * static_cast<int64_t>(convolution.blocks.size()), [&](int64_t task, int worker) {
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
    void finish_range(const PreparedOp &prepared, size_t number, const ChannelBlock &block, const WinogradPhase &phase,
                      int64_t begin, int64_t end, const Lines &lines, std::byte *features) const {
        const WinogradConvolution &convolution = prepared.winograd[number];
        for_each_run(schedules_of(prepared)[number], begin, end, [&](const TileRun &run) {
            const WinogradTarget target = prepared.op->kind == OpKind::head
                                              ? head_target(prepared, run, features)
                                              : output_target(*prepared.op, convolution, run);
            finish_run(convolution, *program_->kernels, block, phase, run, lines, target);
        });
    }

    // What comes behind the last convolution of an op, for tiles that the caches still hold.
    void finish_block(const PreparedOp &prepared, size_t number, const ChannelBlock &block, int64_t begin,
                      int64_t end) const {
        if (number + 1 < prepared.winograd.size() || prepared.op->kind == OpKind::head)
            return;
        for_each_run(schedules_of(prepared)[number], begin, end,
                     [&](const TileRun &run) { frame_and_pool(*prepared.op, prepared.winograd[number], block, run); });
    }

    WinogradTarget output_target(const Op &op, const WinogradConvolution &convolution, const TileRun &run) const {
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
    WinogradTarget head_target(const PreparedOp &prepared, const TileRun &run, std::byte *features) const {
        const WinogradConvolution &convolution = prepared.winograd[0];
        const auto [height, width] = convolved_size(*prepared.op);
        const int64_t pixel = convolution.padded_channels * static_cast<int64_t>(sizeof(float));
        const int64_t tile = convolution.tile;
        return {features + run.first * tile * tile * pixel, run.tiles * tile * pixel, pixel, height, width, false};
    }

    // Rows and columns of the output that a run covers.
    void frame_and_pool(const Op &op, const WinogradConvolution &convolution, const ChannelBlock &block,
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
            pool_pair(to, buffers_[op.outputs[1]], block, run.image, y / 2, first / 2, last / 2);
    }

    void finish_head(const PreparedOp &prepared, const Pass &pass, int64_t begin, int64_t end, std::byte *features,
                     std::byte *logits) const {
        const int64_t tile = prepared.winograd[0].tile;
        for_each_run(schedules_of(prepared)[0], begin, end, [&](const TileRun &run) {
            const WinogradTarget target = head_target(prepared, run, features);
            const int64_t first = run.row * tile, x = run.column * tile;
            for (int64_t y = first; y < std::min(first + tile, target.height); ++y) {
                head_row(prepared, pass, run.image, y, x, std::min(run.tiles * tile, target.width - x),
                         target.data + (y - first) * target.row_stride, logits);
            }
        });
    }

    std::byte *scratch_of(int worker) const { return scratch_ + static_cast<size_t>(worker) * scratch_size_; }

    std::shared_ptr<const Program> program_;
    PassShape shape_;
    int group_ = 1;                    // images that go through the ops together
    std::vector<Activations> buffers_; // as in the plan; [0] is only a shape
    Activations image_;                // normalised, float32, for stems
    std::optional<Int8Buffers> int8_;
    AlignedMemory arena_;
    size_t arena_bytes_ = 0;
    std::vector<size_t> slot_offsets_;
    std::vector<std::byte> unseen_;           // results of `warm`
    const std::atomic<int> *calls_ = nullptr; // for which a pass of `warm` ends early
    std::byte *scratch_ = nullptr;
    size_t scratch_size_ = 0;                              // per worker
    std::vector<std::vector<WinogradSchedule>> schedules_; // [op][convolution]
    std::byte *transformed_ = nullptr;                     // windows of a whole pass
    size_t transformed_size_ = 0;
};

class CpuExecutor final : public Executor {
  public:
    explicit CpuExecutor(std::shared_ptr<const Program> program) : program_(std::move(program)) {}

    std::unique_ptr<Context> make_context(const PassShape &shape) const override {
        return std::make_unique<CpuContext>(program_, shape);
    }
    Profile profile(const PassShape &shape) const override {
        CpuContext context(program_, shape);
        Profile profile = profile_passes(context, context.op_seconds, *program_->plan);
        profile.bytes_per_second = peak_copy_rate(*program_->pool);
        profile.operations_per_second = peak_operations(isa(), program_->bf16, *program_->pool);
        profile.operations_measured = true;
        return profile;
    }
    std::string device() const override { return "cpu"; }
    std::string precision() const override { return program_->int8 ? "int8" : program_->bf16 ? "bf16" : "float32"; }
    std::string isa() const override { return program_->int8 ? program_->int8->kernels.isa : program_->kernels->isa; }

  private:
    std::shared_ptr<const Program> program_;
};

// `winograd`: the forms that were chosen for the op.
PreparedOp prepare(const Op &op, const std::vector<WinogradForm> &winograd, const Program &program) {
    PreparedOp prepared;
    prepared.op = &op;
    prepared.row_function = row_function(op.kind, program.bf16);
    if (!convolves(op.kind) || Int8Program::runs(op))
        return prepared;
    std::vector<int> channels;
    for (const int input : op.inputs)
        channels.push_back(program.plan->buffers[input].channels);
    if (!winograd.empty())
        prepared.winograd = prepare_winograd(op, channels, winograd, *program.kernels, *program.pool);
    else
        prepared.convolution = prepare_convolution(op, channels, program.bf16, *program.kernels, *program.pool);
    if (op.kind == OpKind::head) {
        prepared.head = prepare_head(op, static_cast<int>(output_channels(op)), program.plan->output_channels,
                                     *program.kernels, *program.pool);
    }
    return prepared;
}

} // namespace

std::unique_ptr<Executor> make_cpu_executor(std::shared_ptr<const Plan> plan, std::shared_ptr<ThreadPool> pool,
                                            const std::string &precision, const std::string &isa, Plan *spare) {
    auto program = std::make_shared<Program>();
    program->plan = std::move(plan);
    program->pool = std::move(pool);
    program->kernels = &choose_kernels(isa);
    const bool int8 = program->plan->precision == "int8"; // the ops that are not run in the best of the rest
    program->bf16 = choose_bf16(int8 ? "auto" : precision, program->plan->precision, *program->kernels);
    if (int8)
        program->int8 = std::make_unique<const Int8Program>(*program->plan, isa);
    program->halos.assign(program->plan->buffers.size(), 0);
    const auto winograd = choose_winograd(*program->plan, *program->kernels, program->bf16);
    for (const Op &op : program->plan->ops) {
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            int &halo = program->halos[op.inputs[i]];
            halo = std::max(halo, required_halo(op, static_cast<int>(i)));
        }
        program->has_stem = program->has_stem || op.kind == OpKind::stem;
        const size_t number = program->ops.size();
        program->ops.push_back(prepare(op, winograd[number], *program));
        if (spare != nullptr && convolves(op.kind) && !Int8Program::runs(op))
            spare->ops[number].tensors.clear();
    }
    return std::make_unique<CpuExecutor>(std::move(program));
}

} // namespace uf
