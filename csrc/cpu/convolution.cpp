#include "convolution.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace uf {
namespace {

// Weights of one tap in the file: for output o and input channel c, first[o * output_stride + c].
struct TapWeights {
    const float *first;
    int64_t output_stride;
    int channels;
    int64_t first_unit; // where they go
};

// Collects taps in the order of their weights, then packs.
class Builder {
  public:
    Builder(bool bf16, const KernelTable &kernels, int channels) : lanes_(kernels.lanes) {
        result_.bf16 = bf16;
        result_.lanes = lanes_;
        result_.channels = channels;
        result_.padded_channels = round_up(channels, lanes_);
        result_.blocks = channel_blocks(result_.padded_channels, kernels);
    }

    Convolution &result() { return result_; }

    // `tight`: a pixel of this source is its units and nothing else.
    void add_source(int channels, int step, bool tight) {
        result_.sources.push_back({result_.bf16 ? (channels + 1) / 2 : channels, step});
        channels_.push_back(channels);
        tight_.push_back(tight);
    }

    bool padded_is_tight(int channels) const { return channels % lanes_ == 0; }

    // Weights of kernel positions (ky, kx) for one source, laid out (O, ky, kx, C) from `first` on with `output_stride`
    // between outputs.  Returns the unit of the first; kernel positions follow each other.
    int64_t add_weights(const float *first, int64_t output_stride, int source, int positions) {
        const int64_t begin = result_.units;
        for (int position = 0; position < positions; ++position) {
            weights_.push_back({first + static_cast<int64_t>(position) * channels_[source], output_stride,
                                channels_[source], result_.units});
            result_.units += result_.sources[source].units;
        }
        return begin;
    }

    void add_phase(int row, int column) { result_.phases.push_back({row, column, {}}); }

    // Appends a tap to the last phase; `position` counts kernel positions from `first_unit` on.
    void add_tap(int source, int dy, int dx, int64_t first_unit, int position) {
        const int64_t units = result_.sources[source].units;
        const ConvTap tap{source, dy, dx, units, first_unit + position * units};
        std::vector<ConvTap> &taps = result_.phases.back().taps;
        if (!taps.empty() && tight_[source]) {
            ConvTap &last = taps.back();
            const bool adjoins = last.source == source && last.dy == dy && last.dx + last.units / units == dx &&
                                 last.first_unit + last.units == tap.first_unit;
            if (adjoins) {
                last.units += units;
                return;
            }
        }
        taps.push_back(tap);
    }

    Convolution pack(ThreadPool &pool) {
        const auto tap_count = static_cast<int64_t>(weights_.size());
        result_.weights = AlignedMemory(static_cast<size_t>(result_.units * result_.padded_channels) * 4);
        pool.run(static_cast<int64_t>(result_.blocks.size()) * tap_count, [&](int64_t task, int) {
            const ChannelBlock &block = result_.blocks[task / tap_count];
            const TapWeights &tap = weights_[task % tap_count];
            const int64_t unit_lanes = static_cast<int64_t>(block.vectors) * lanes_;
            const int64_t block_begin = result_.units * block.first_vector * lanes_;
            std::byte *to = result_.weights.data() + 4 * (block_begin + tap.first_unit * unit_lanes);
            if (result_.bf16) {
                pack_tap<Bf16, 2>(tap, block, reinterpret_cast<Bf16 *>(to));
            } else {
                pack_tap<float, 1>(tap, block, reinterpret_cast<float *>(to));
            }
        });
        return std::move(result_);
    }

  private:
    // [unit][output][channel of the unit]; outputs and channels beyond the last are zero.
    template <class Element, int unit_channels>
    void pack_tap(const TapWeights &tap, const ChannelBlock &block, Element *to) const {
        const int begin = block.first_vector * lanes_, end = begin + block.vectors * lanes_;
        for (int channel = 0; channel < tap.channels; channel += unit_channels) {
            for (int output = begin; output < end; ++output) {
                const float *from = tap.first + output * tap.output_stride + channel;
                for (int i = 0; i < unit_channels; ++i) {
                    const bool exists = output < result_.channels && channel + i < tap.channels;
                    from_float(exists ? from[i] : 0.0F, *to++);
                }
            }
        }
    }

    Convolution result_;
    int lanes_;
    std::vector<int> channels_;
    std::vector<bool> tight_;
    std::vector<TapWeights> weights_;
};

// `bias` is [classes][channels].
Epilogue plain_epilogue(const float *bias, int classes, int channels, const KernelTable &kernels) {
    Epilogue result;
    const auto padded = static_cast<size_t>(round_up(channels, kernels.lanes));
    result.border_bias = classes > 1;
    result.bias = AlignedMemory(classes * padded * sizeof(float));
    std::fill_n(result.bias.floats(), classes * padded, 0.0F);
    for (int i = 0; i < classes; ++i)
        std::copy_n(bias + static_cast<int64_t>(i) * channels, channels, result.bias.floats() + i * padded);
    return result;
}

// The taps of an ordinary convolution over one source, whose pixel (0, 0) is (crop) away.
void add_window(Builder &builder, const Op &op, int source, const float *weight, int channels,
                std::array<int, 2> crop) {
    const int positions = op.kernel[0] * op.kernel[1];
    const int64_t first = builder.add_weights(weight, static_cast<int64_t>(positions) * channels, source, positions);
    for (int position = 0; position < positions; ++position) {
        builder.add_tap(source, position / op.kernel[1] - op.padding[0] + crop[0],
                        position % op.kernel[1] - op.padding[1] + crop[1], first, position);
    }
}

void add_conv(Builder &builder, const Op &op, int channels) {
    const float *weight = values_of(op, "weight", output_channels(op) * op.kernel[0] * op.kernel[1] * channels);
    builder.add_source(channels, 1, op.kind == OpKind::stem || builder.padded_is_tight(channels));
    builder.add_phase(0, 0);
    add_window(builder, op, 0, weight, channels, {0, 0});
}

void add_concat_conv(Builder &builder, const Op &op, const std::vector<int> &channels) {
    const int64_t values = output_channels(op) * op.kernel[0] * op.kernel[1];
    for (int source = 0; source < 2; ++source)
        builder.add_source(channels[source], 1, builder.padded_is_tight(channels[source]));
    builder.add_phase(0, 0);
    add_window(builder, op, 0, values_of(op, "weight_a", values * channels[0]), channels[0], {0, 0});
    add_window(builder, op, 1, values_of(op, "weight_b", values * channels[1]), channels[1], op.crop);
}

// Output pixel 2 i + row is the middle of a 3x3 window in the upsampled image, at 2 i + row + 1 - padding.
void add_up_conv(Builder &builder, const Op &op, const std::vector<int> &channels) {
    const int low = channels[0], skip = channels[1], padding = op.padding[0];
    const int64_t outputs = builder.result().channels;
    const float *weight_up = values_of(op, "weight_up", 16 * outputs * low);
    const float *weight_skip = values_of(op, "weight_skip", 9 * outputs * skip);
    builder.result().stride_y = builder.result().stride_x = 2;
    builder.add_source(low, 1, builder.padded_is_tight(low));
    builder.add_source(skip, 2, builder.padded_is_tight(skip));

    int64_t up_units[4];
    for (int phase = 0; phase < 4; ++phase) {
        up_units[phase] = builder.add_weights(weight_up + phase * outputs * 4 * low, 4 * low, 0, 4);
    }
    const int64_t skip_units = builder.add_weights(weight_skip, static_cast<int64_t>(9) * skip, 1, 9);

    for (int row = 0; row < 2; ++row) {
        for (int column = 0; column < 2; ++column) {
            const int middle_y = row + 1 - padding, middle_x = column + 1 - padding;
            const int phase_y = middle_y & 1, phase_x = middle_x & 1;
            builder.add_phase(row, column);
            for (int tap = 0; tap < 4; ++tap) {
                builder.add_tap(0, (middle_y >> 1) - 1 + phase_y + tap / 2, (middle_x >> 1) - 1 + phase_x + tap % 2,
                                up_units[2 * phase_y + phase_x], tap);
            }
            for (int tap = 0; tap < 9; ++tap) {
                builder.add_tap(1, row - padding + tap / 3 + op.crop[0], column - padding + tap % 3 + op.crop[1],
                                skip_units, tap);
            }
        }
    }
}

// Kernel row ky of input row i falls on output row i * stride + ky - padding.
void add_conv_transpose(Builder &builder, const Op &op, int channels) {
    const int positions = op.kernel[0] * op.kernel[1];
    const float *weight = values_of(op, "weight", output_channels(op) * positions * channels);
    builder.result().stride_y = op.stride[0];
    builder.result().stride_x = op.stride[1];
    builder.add_source(channels, 1, builder.padded_is_tight(channels));
    const int64_t first = builder.add_weights(weight, static_cast<int64_t>(positions) * channels, 0, positions);
    for (int row = 0; row < op.stride[0]; ++row) {
        for (int column = 0; column < op.stride[1]; ++column) {
            builder.add_phase(row, column);
            for (int position = 0; position < positions; ++position) {
                const int dy = row + op.padding[0] - position / op.kernel[1];
                const int dx = column + op.padding[1] - position % op.kernel[1];
                if (dy % op.stride[0] == 0 && dx % op.stride[1] == 0) {
                    builder.add_tap(0, dy / op.stride[0], dx / op.stride[1], first, position);
                }
            }
        }
    }
}

} // namespace

const float *values_of(const Op &op, const char *name, int64_t expected) {
    const Tensor &tensor = op.tensor(name);
    const auto found = static_cast<int64_t>(tensor.values.size());
    if (found == expected && found != 0)
        return tensor.values.data();
    throw Error(UF_ERR_BAD_FILE, "op '" + op.name + "': tensor '" + name + "' has " + std::to_string(found) +
                                     " values, " + std::to_string(expected) + " expected");
}

int64_t output_channels(const Op &op) {
    return static_cast<int64_t>(op.tensor("bias").values.size()) / (op.kind == OpKind::up_conv ? 9 : 1);
}

std::vector<ChannelBlock> channel_blocks(int padded_channels, const KernelTable &kernels) {
    std::vector<ChannelBlock> result;
    const int vectors = padded_channels / kernels.lanes;
    for (int first = 0, width = kernels.max_vectors; first < vectors; first += width) {
        while (width > vectors - first)
            width /= 2;
        result.push_back({first, width});
    }
    return result;
}

Epilogue make_epilogue(const Op &op, const KernelTable &kernels) {
    const int channels = static_cast<int>(output_channels(op)), classes = op.kind == OpKind::up_conv ? 9 : 1;
    const float *bias = values_of(op, "bias", output_channels(op) * classes);
    const bool border = classes == 9 && op.padding[0] != 0;
    Epilogue result = classes == 9 && !border ? plain_epilogue(bias + 4 * channels, 1, channels, kernels)
                                              : plain_epilogue(bias, classes, channels, kernels);
    result.slope = op.slope;
    switch (op.activation) {
    case Activation::none:
        result.activation = KernelActivation::none;
        return result;
    case Activation::relu:
        result.activation = KernelActivation::relu;
        return result;
    case Activation::leaky_relu:
        result.activation = KernelActivation::leaky_relu;
        return result;
    default:
        throw Error(UF_ERR_BAD_FILE, "op '" + op.name + "': a convolution has no such activation");
    }
}

int required_halo(const Op &op, int input) {
    const int padding = *std::max_element(op.padding.begin(), op.padding.end());
    if (op.winograd)
        return 2; // of an odd side the last tile computes a pixel too many, which nobody sees
    switch (op.kind) {
    case OpKind::stem:
    case OpKind::conv:
    case OpKind::up_conv:
    case OpKind::head:
        return padding;
    case OpKind::concat_conv:
        return input == 0 && op.upsample != UpsampleMode::none ? 0 : padding;
    case OpKind::conv_transpose:
        return std::max((op.kernel[0] - 1) / op.stride[0], (op.kernel[1] - 1) / op.stride[1]);
    default:
        return 0;
    }
}

Convolution prepare_convolution(const Op &op, const std::vector<int> &channels, bool bf16, const KernelTable &kernels,
                                ThreadPool &pool) {
    Builder builder(bf16 && op.kind != OpKind::stem, kernels, static_cast<int>(output_channels(op)));
    builder.result().epilogue = make_epilogue(op, kernels);
    switch (op.kind) {
    case OpKind::up_conv:
        add_up_conv(builder, op, channels);
        break;
    case OpKind::concat_conv:
        add_concat_conv(builder, op, channels);
        break;
    case OpKind::conv_transpose:
        add_conv_transpose(builder, op, channels[0]);
        break;
    default:
        add_conv(builder, op, channels[0]);
        break;
    }
    return builder.pack(pool);
}

int64_t Head::logit_bytes(int64_t pixels) const {
    const int64_t whole_vectors = (pixels + lanes - 1) / lanes * lanes;
    return whole_vectors * logit_stride() * static_cast<int64_t>(sizeof(float));
}

Head prepare_head(const Op &op, int channels, int outputs, const KernelTable &kernels, ThreadPool &pool) {
    Head head;
    head.lanes = kernels.lanes;
    const float *weight = values_of(op, "head_weight", static_cast<int64_t>(outputs) * channels);
    const float *bias = values_of(op, "head_bias", outputs);
    if (outputs == 1) { // as a convolution it would fill one lane of each vector of weights
        const int padded = round_up(channels, kernels.lanes);
        head.vectors = padded / kernels.lanes;
        head.weights = AlignedMemory(static_cast<size_t>(padded) * sizeof(float));
        std::fill(std::copy_n(weight, channels, head.weights.floats()), head.weights.floats() + padded, 0.0F);
        head.bias = *bias;
        return head;
    }
    Builder builder(false, kernels, outputs);
    builder.add_source(channels, 1, true);
    builder.add_phase(0, 0);
    builder.add_tap(0, 0, 0, builder.add_weights(weight, channels, 0, 1), 0);
    builder.result().epilogue = plain_epilogue(bias, 1, outputs, kernels);
    head.convolution = builder.pack(pool);
    return head;
}

void compute_logits(const Head &head, const KernelTable &kernels, const std::byte *features, int64_t pixels,
                    float *logits) {
    if (head.single()) {
        kernels.logits({reinterpret_cast<const float *>(features), head.weights.floats(), head.bias, head.vectors,
                        pixels, logits});
        return;
    }
    const Convolution &convolution = head.convolution;
    constexpr int64_t element = sizeof(float);
    const ConvInput input{features, 0, element * round_up(convolution.sources[0].units, kernels.lanes)};
    for (const ChannelBlock &block : convolution.blocks) {
        convolve_row(convolution, kernels, block, &input, 0, 1, pixels, false, reinterpret_cast<std::byte *>(logits),
                     element * convolution.padded_channels);
    }
}

void convolve_row(const Convolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                  const ConvInput *inputs, int64_t y, int64_t height, int64_t width, bool output_is_bf16,
                  std::byte *output, int64_t output_stride) {
    constexpr size_t most_taps = 2 * 16; // two sources, kernel 4x4
    Tap taps[most_taps];
    const int64_t unit_lanes = static_cast<int64_t>(block.vectors) * convolution.lanes;
    const int64_t channel = static_cast<int64_t>(block.first_vector) * convolution.lanes;
    const std::byte *weights = convolution.weights.data() + 4 * convolution.units * channel;
    const int64_t element = output_is_bf16 ? sizeof(Bf16) : sizeof(float);

    for (const ConvPhase &phase : convolution.phases) {
        if (y % convolution.stride_y != phase.row || phase.column >= width)
            continue;
        for (size_t i = 0; i < phase.taps.size(); ++i) {
            const ConvTap &tap = phase.taps[i];
            const ConvInput &input = inputs[tap.source];
            const int step = convolution.sources[tap.source].step;
            const int64_t input_y = y / convolution.stride_y * step + tap.dy;
            taps[i].input = input.data + input_y * input.row_stride + tap.dx * input.pixel_stride;
            taps[i].pixel_stride = step * input.pixel_stride;
            taps[i].weights = weights + 4 * tap.first_unit * unit_lanes;
            taps[i].units = tap.units;
        }

        ConvRow row;
        row.taps = taps;
        row.tap_count = static_cast<int>(phase.taps.size());
        row.vectors = block.vectors;
        row.pixels = (width - phase.column + convolution.stride_x - 1) / convolution.stride_x;
        row.activation = convolution.epilogue.activation;
        row.slope = convolution.epilogue.slope;
        row.output_is_bf16 = output_is_bf16;
        row.output = output + phase.column * output_stride + channel * element;
        row.output_stride = output_stride * convolution.stride_x;

        const float *bias = convolution.epilogue.bias.floats() + channel;
        row.bias_first = row.bias = row.bias_last = bias;
        if (convolution.epilogue.border_bias) {
            const auto padded = static_cast<int64_t>(convolution.padded_channels);
            const int64_t last_x = phase.column + (row.pixels - 1) * convolution.stride_x;
            bias += 3 * border_class(y, height) * padded;
            row.bias_first = bias + border_class(phase.column, width) * padded;
            row.bias = bias + padded;
            row.bias_last = bias + border_class(last_x, width) * padded;
        }
        (convolution.bf16 ? kernels.conv_bf16 : kernels.conv_float32)(row);
    }
}

} // namespace uf
