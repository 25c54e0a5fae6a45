#include "cpu_executor.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "activations.h"
#include "aligned_memory.h"
#include "convolution.h"
#include "cpu_profile.h"
#include "cpu_program.h"
#include "error.h"
#include "int8_pass.h"
#include "machine_peak.h"
#include "pass.h"
#include "plain_ops.h"
#include "winograd_pass.h"

namespace uf {
namespace {

// Output rows of one task.  A pooled row needs two; rows that share upsampled input amortise it.
int rows_per_task(const Op &op) {
    if (op.kind == OpKind::concat_conv && op.upsample != UpsampleMode::none)
        return 8;
    return op.outputs.size() == 2 ? 2 : 1;
}

class CpuContext final : public Context {
  public:
    CpuContext(std::shared_ptr<const CpuProgram> program, const PassShape &shape)
        : program_(std::move(program)), shape_(shape) {
        lay_out_buffers();
        choose_group();
        if (program_->int8)
            int8_.emplace(*program_->int8, PassShape{group_, shape_.height, shape_.width}, program_->halos);
        reserve_slots();
        winograd_.emplace(*program_, buffers_, group_);
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
    void run_group(const Pass &pass) {
        for (size_t index = 0; index < program_->ops.size(); ++index) {
            const PreparedOp &prepared = program_->ops[index];
            if (calls_ != nullptr && *calls_ != 0)
                return;
            const OpTimer timer(op_seconds, index);
            if (WinogradPass::runs(prepared)) {
                winograd_->run(index, pass);
                continue;
            }
            if (Int8Program::runs(*prepared.op)) {
                int8_->run(index, pass, buffers_.data(), *program_->pool, scratch_, scratch_size_);
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
        const CpuProgram &program = *program_;
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

    // Where so many bytes of the arena begin.
    size_t reserve(size_t bytes) {
        const size_t offset = arena_bytes_;
        arena_bytes_ += aligned(bytes);
        require_memory(shape_, static_cast<double>(arena_bytes_));
        return offset;
    }

    void reserve_slots() {
        const CpuProgram &program = *program_;
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
        const CpuProgram &program = *program_;
        const size_t image_offset =
            reserve(program.has_stem ? std::max(bytes_of(image_), int8_ ? int8_->image_bytes() : 0) : 0);
        const size_t transformed_offset = reserve(winograd_->transformed_bytes());
        for (const PreparedOp &prepared : program.ops)
            scratch_size_ = std::max(scratch_size_, aligned(scratch_bytes(prepared)));
        scratch_size_ = std::max(scratch_size_, aligned(winograd_->scratch_bytes()));
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
        scratch_ = arena_.data() + scratch_offset;
        winograd_->place(arena_.data() + transformed_offset, scratch_, scratch_size_);
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
        if (Int8Program::runs(op) || WinogradPass::runs(prepared))
            return 0; // it has its own
        if (op.kind == OpKind::head)
            return static_cast<size_t>(feature_row(prepared).row_stride +
                                       prepared.head.logit_bytes(convolved_size(op, buffers_.data())[1]));
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
        row.width = convolved_size(*prepared.op, buffers_.data())[1];
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
                pool_pair(kernels, to, buffers_[op.outputs[1]], block, image, begin / 2, 0, to.width / 2);
        });
    }

    void head(const PreparedOp &prepared, const Pass &pass) {
        const KernelTable &kernels = *program_->kernels;
        const Activations &from = buffers_[prepared.op->inputs[0]];
        const Activations features = feature_row(prepared);
        const auto size = convolved_size(*prepared.op, buffers_.data());
        const int height = size[0], width = size[1];

        program_->pool->run(static_cast<int64_t>(pass.count) * height, [&](int64_t task, int worker) {
            const int64_t image = task / height, y = task % height;
            std::byte *row = scratch_of(worker);
            const ConvInput input = input_of(from, image);
            for (const ChannelBlock &block : prepared.convolution.blocks) {
                convolve_row(prepared.convolution, kernels, block, &input, y, height, width, false, row,
                             features.pixel_stride);
            }
            head_row(*program_->plan, kernels, prepared.head, pass, image, y, 0, width, row, row + features.row_stride);
        });
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

    std::byte *scratch_of(int worker) const { return scratch_ + static_cast<size_t>(worker) * scratch_size_; }

    std::shared_ptr<const CpuProgram> program_;
    PassShape shape_;
    int group_ = 1;                    // images that go through the ops together
    std::vector<Activations> buffers_; // as in the plan; [0] is only a shape
    Activations image_;                // normalised, float32, for stems
    std::optional<Int8Buffers> int8_;
    std::optional<WinogradPass> winograd_;
    AlignedMemory arena_;
    size_t arena_bytes_ = 0;
    std::vector<size_t> slot_offsets_;
    std::vector<std::byte> unseen_;           // results of `warm`
    const std::atomic<int> *calls_ = nullptr; // for which a pass of `warm` ends early
    std::byte *scratch_ = nullptr;
    size_t scratch_size_ = 0; // per worker
};

class CpuExecutor final : public Executor {
  public:
    explicit CpuExecutor(std::shared_ptr<const CpuProgram> program) : program_(std::move(program)) {}

    std::unique_ptr<Context> make_context(const PassShape &shape) const override {
        return std::make_unique<CpuContext>(program_, shape);
    }
    Profile profile(const PassShape &shape) const override {
        CpuContext context(program_, shape);
        Profile profile = profile_passes(context, context.op_seconds, *program_->plan);
        profile.bytes_per_second = peak_copy_rate(*program_->pool);
        profile.operations_per_second = peak_operations(isa(), precision(), *program_->pool);
        profile.operations_measured = true;
        return profile;
    }
    std::string device() const override { return "cpu"; }
    std::string precision() const override {
        if (program_->int8)
            return "int8";
        return program_->bf16 ? "bf16" : program_->products == Products::fp16 ? "fp16" : "float32";
    }
    std::string isa() const override { return program_->int8 ? program_->int8->kernels.isa : program_->kernels->isa; }

  private:
    std::shared_ptr<const CpuProgram> program_;
};

} // namespace

std::unique_ptr<Executor> make_cpu_executor(std::shared_ptr<const Plan> plan, std::shared_ptr<ThreadPool> pool,
                                            const std::string &precision, const std::string &isa, Plan *spare) {
    return std::make_unique<CpuExecutor>(make_cpu_program(std::move(plan), std::move(pool), precision, isa, spare));
}

} // namespace uf
