#include "plane_convolution.h"

#include <algorithm>
#include <cmath>

namespace uf {
namespace {

constexpr int most_parts = 4, most_taps = 16, most_block = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Weights of one part in the file: of output o, tap t and input channel c, first[o * output_stride + t * channels + c].
template <class Element> struct PartWeights {
    const Element *first;
    int64_t output_stride;
    int channels;
    size_t taps;
    int64_t first_weight;
};

// Collects parts in the order of their weights, then packs.
template <class Element> class PlaneBuilder {
  public:
    static constexpr int plane_channels = sizeof(Element) == 1 ? 4 : 1;

    PlaneBuilder(PlaneConvolution &result, const Op &op, const Int8Kernels &kernels)
        : result_(result), op_(op), words_(plane_channels == 1 ? 1 : kernels.weight_words) {
        result_.rows.resize(1);
    }

    PlanePart part(int source, const Element *first, int64_t output_stride, int channels,
                   std::vector<std::array<int, 2>> taps, bool halved) {
        PlanePart part;
        part.source = source;
        part.planes = static_cast<int>(divide_up(channels, plane_channels));
        part.halved = halved;
        part.first_weight = result_.group_bytes;
        weights_.push_back({first, output_stride, channels, taps.size(), part.first_weight});
        result_.group_bytes += static_cast<int64_t>(part.planes * taps.size()) * plane_outputs * words_ * 4;
        part.taps = std::move(taps);
        return part;
    }

    // An ordinary convolution of `rows` x `columns` over a source whose pixel (0, 0) is (crop) away.
    PlanePart window(int source, const Element *weight, int channels, int rows, int columns, std::array<int, 2> crop) {
        std::vector<std::array<int, 2>> taps;
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < columns; ++column)
                taps.push_back({row - op_.padding[0] + crop[0], column - op_.padding[1] + crop[1]});
        return part(source, weight, static_cast<int64_t>(rows) * columns * channels, channels, taps, false);
    }

    void pack() {
        result_.weights = AlignedMemory(static_cast<size_t>(result_.group_bytes) * static_cast<size_t>(result_.groups));
        for (int group = 0; group < result_.groups; ++group) {
            for (const PartWeights<Element> &part : weights_) {
                std::byte *to = result_.weights.data() + group * result_.group_bytes + part.first_weight;
                for (int channel = 0; channel < part.channels; channel += plane_channels)
                    for (size_t tap = 0; tap < part.taps; ++tap)
                        for (int output = 0; output < plane_outputs; ++output, to += 4 * words_)
                            pack_words(part, group * plane_outputs + output, tap, channel, to);
            }
        }
    }

  private:
    void pack_words(const PartWeights<Element> &part, int output, size_t tap, int channel, std::byte *to) const {
        Element values[4] = {};
        if (output < result_.channels) {
            const Element *from =
                part.first + output * part.output_stride + static_cast<int64_t>(tap) * part.channels + channel;
            std::copy_n(from, std::min(plane_channels, part.channels - channel), values);
        }
        if (words_ == 1) {
            std::memcpy(to, values, 4);
        } else {
            const int16_t wide[] = {static_cast<int16_t>(values[0]), static_cast<int16_t>(values[2]),
                                    static_cast<int16_t>(values[1]), static_cast<int16_t>(values[3])};
            std::memcpy(to, wide, sizeof wide);
        }
    }

    PlaneConvolution &result_;
    const Op &op_;
    const int words_;
    std::vector<PartWeights<Element>> weights_;
};

// Output pixel 2 i + row is the middle of a 3x3 window in the upsampled image, at 2 i + row + 1 - padding.
void add_up_conv(PlaneBuilder<int8_t> &builder, PlaneConvolution &result, const Op &op, int low, int skip) {
    const int padding = op.padding[0];
    const int8_t *weight_up = op.tensor("weight_up").integers.data();
    const PlanePart skip_part = builder.window(1, op.tensor("weight_skip").integers.data(), skip, 3, 3, op.crop);
    result.interleaved = true;
    result.rows.resize(2);
    for (int row = 0; row < 2; ++row) {
        const int middle_y = row + 1 - padding, phase_y = middle_y & 1;
        for (int column = 0; column < 2; ++column) {
            const int middle_x = column + 1 - padding, phase_x = middle_x & 1;
            std::vector<std::array<int, 2>> taps;
            for (int tap = 0; tap < 4; ++tap)
                taps.push_back({(middle_y >> 1) - 1 + phase_y + tap / 2, (middle_x >> 1) - 1 + phase_x + tap % 2});
            const int64_t phase = 2 * phase_y + phase_x;
            result.rows[row].push_back(builder.part(0, weight_up + phase * result.channels * 4 * low,
                                                    static_cast<int64_t>(4) * low, low, taps, true));
        }
        result.rows[row].push_back(skip_part);
    }
}

// Kernel and stride 2x2: each output pixel has one tap.
void add_conv_transpose(PlaneBuilder<int8_t> &builder, PlaneConvolution &result, const Op &op, int channels) {
    result.interleaved = true;
    result.rows.resize(2);
    for (int phase = 0; phase < 4; ++phase)
        result.rows[phase / 2].push_back(builder.part(0, op.tensor("weight").integers.data() + phase * channels,
                                                      static_cast<int64_t>(4) * channels, channels, {{0, 0}}, true));
}

// Bias classes of an op: 9 by border, or 1.
template <class Number> std::vector<Number> padded_bias(const Op &op, const PlaneConvolution &convolution) {
    const Tensor &bias = op.tensor("bias");
    const bool has_nine = op.kind == OpKind::up_conv;
    const float *from = bias.values.data() + (has_nine && !convolution.border_bias ? 4 * convolution.channels : 0);
    const int classes = convolution.border_bias ? 9 : 1, padded = convolution.groups * plane_outputs;
    std::vector<Number> result(static_cast<size_t>(classes * padded), Number{0});
    for (int i = 0; i < classes; ++i)
        for (int channel = 0; channel < convolution.channels; ++channel)
            result[static_cast<size_t>(i * padded + channel)] = static_cast<Number>(*from++);
    return result;
}

int border_class(int64_t position, int64_t size) { return position == 0 ? 0 : position == size - 1 ? 2 : 1; }

} // namespace

PlaneConvolution prepare_plane_convolution(const Op &op, const Plan &plan, const Int8Kernels &kernels) {
    PlaneConvolution result;
    const auto channels = [&](size_t input) { return plan.buffers[static_cast<size_t>(op.inputs[input])].channels; };
    result.of_floats = op.kind == OpKind::stem;
    result.channels = static_cast<int>(op.tensor("bias").shape.back());
    result.groups = static_cast<int>(divide_up(result.channels, plane_outputs));
    result.border_bias = op.kind == OpKind::up_conv && op.padding[0] != 0;
    result.to_bytes = op.kind != OpKind::head;
    result.relu = op.activation == Activation::relu;
    for (int channel = 0; channel < result.groups * plane_outputs; ++channel) {
        float multiplier = 0.0F;
        if (channel < result.channels)
            multiplier = result.of_floats ? 1.0F : op.tensor("scale").values[static_cast<size_t>(channel)];
        result.multiplier.push_back(result.to_bytes ? multiplier / op.output_scale : multiplier);
    }
    if (result.of_floats) {
        result.float_bias = padded_bias<float>(op, result);
        PlaneBuilder<float> builder(result, op, kernels);
        result.rows[0].push_back(
            builder.window(0, op.tensor("weight").values.data(), channels(0), op.kernel[0], op.kernel[1], {0, 0}));
        builder.pack();
        return result;
    }
    result.bias = padded_bias<int32_t>(op, result);
    PlaneBuilder<int8_t> builder(result, op, kernels);
    const auto window = [&](int source, const char *weight, std::array<int, 2> crop) {
        result.rows[0].push_back(builder.window(source, op.tensor(weight).integers.data(),
                                                channels(static_cast<size_t>(source)), op.kernel[0], op.kernel[1],
                                                crop));
    };
    switch (op.kind) {
    case OpKind::up_conv:
        add_up_conv(builder, result, op, channels(0), channels(1));
        break;
    case OpKind::conv_transpose:
        add_conv_transpose(builder, result, op, channels(0));
        break;
    case OpKind::concat_conv:
        window(0, "weight_a", {0, 0});
        window(1, "weight_b", op.crop);
        break;
    default:
        window(0, "weight", {0, 0});
        break;
    }
    builder.pack();
    return result;
}

int64_t rows_for_full_blocks(const PlaneConvolution &convolution, const Int8Kernels &kernels, int64_t width) {
    const int64_t per_row = divide_up(width, kernels.lanes * (convolution.interleaved ? 2 : 1));
    return 2 * divide_up(kernels.most_vectors, per_row);
}

void convolve_planes(const PlaneConvolution &convolution, const Int8Kernels &kernels, const Planes *const *sources,
                     int64_t image, int group, int64_t begin, int64_t end, int64_t height, int64_t width,
                     const PlaneTarget &target) {
    const int64_t lanes = kernels.lanes, step = static_cast<int64_t>(convolution.rows.size());
    const int share = convolution.interleaved ? 2 : 1; // vectors of one place in a row
    const int64_t places = divide_up(width, share * lanes), most = kernels.most_vectors / share;
    const char *weights = reinterpret_cast<const char *>(convolution.weights.data()) + group * convolution.group_bytes;
    const int channel = group * plane_outputs, padded = convolution.groups * plane_outputs;

    PlaneTaps parts[most_parts];
    int64_t taps[most_parts][most_taps], pixels[most_parts][most_block], output_pixels[most_block];
    int64_t line_strides[most_parts];
    bool in_pairs[most_parts]; // the vectors of a pair lie side by side in this source
    int32_t first_bias[plane_outputs] = {}, last_bias[plane_outputs] = {};
    PlaneBlock block = {};
    block.interleaved = convolution.interleaved;
    block.parts = parts;
    block.first_bias = first_bias;
    block.last_bias = last_bias;
    block.last_lane = static_cast<int>((width - 1) % lanes);
    block.multiplier = convolution.multiplier.data() + channel;
    block.to_bytes = convolution.to_bytes;
    block.relu = convolution.relu;
    block.output = reinterpret_cast<char *>(target.data);
    block.output_plane_stride = target.plane_stride;
    block.output_pixels = output_pixels;

    // The rows y, y + step, ... below `stop` take the same parts and biases.
    const auto convolve = [&](int64_t y, int64_t stop) {
        const std::vector<PlanePart> &row_parts = convolution.rows[static_cast<size_t>(y % step)];
        block.part_count = static_cast<int>(row_parts.size());
        for (size_t i = 0; i < row_parts.size(); ++i) {
            const PlanePart &part = row_parts[i];
            const Planes &source = *sources[part.source];
            line_strides[i] = part.halved ? source.row_stride : step * source.row_stride;
            in_pairs[i] = share == 2 && !part.halved;
            for (size_t tap = 0; tap < part.taps.size(); ++tap)
                taps[i][tap] = part.taps[tap][0] * source.row_stride + part.taps[tap][1] * Planes::pixel_bytes;
            parts[i] = {reinterpret_cast<const char *>(source.row(image, 0, part.halved ? y / 2 : y)),
                        source.plane_stride,
                        part.planes,
                        pixels[i],
                        taps[i],
                        static_cast<int>(part.taps.size()),
                        weights + part.first_weight};
        }
        if (convolution.of_floats) {
            block.bias = convolution.float_bias.data() + channel;
        } else if (!convolution.border_bias) {
            block.bias = convolution.bias.data() + channel;
        } else {
            const int32_t *of_row = convolution.bias.data() + 3 * border_class(y, height) * padded + channel;
            block.bias = of_row + padded;
            for (int o = 0; o < plane_outputs; ++o) {
                first_bias[o] = of_row[o] - of_row[padded + o];
                last_bias[o] = of_row[2 * padded + o] - of_row[padded + o];
            }
        }

        // Counted, not divided, as there is little time between the blocks of a thin op.
        const int64_t total = divide_up(stop - y, step) * places, blocks = divide_up(total, most);
        const int64_t apart = lanes * Planes::pixel_bytes;
        int64_t line = 0, place = 0;
        for (int64_t number = 0; number < blocks; ++number) {
            // Of almost equal size, so that none is a small, slow remainder.
            const int64_t slots = total * (number + 1) / blocks - total * number / blocks;
            block.vectors = static_cast<int>(slots) * share;
            block.first = block.last = 0;
            for (int64_t slot = 0; slot < slots; ++slot) {
                for (int i = 0; i < block.part_count; ++i) {
                    const int64_t at = line * line_strides[i];
                    if (in_pairs[i]) {
                        pixels[i][2 * slot] = at + 2 * place * apart;
                        pixels[i][2 * slot + 1] = at + (2 * place + 1) * apart;
                    } else {
                        pixels[i][slot] = at + place * apart;
                    }
                }
                const int64_t to = (y - begin + line * step) * target.row_stride;
                for (int64_t v = 0; v < share; ++v)
                    output_pixels[share * slot + v] = to + (share * place + v) * apart;
                if (convolution.border_bias) {
                    block.first |= place == 0 ? 1U << (share * slot) : 0U;
                    if (place == places - 1)
                        block.last |= 1U << (share * slot + (width - 1) / lanes % share);
                }
                if (++place == places) {
                    place = 0;
                    ++line;
                }
            }
            (convolution.of_floats ? kernels.convolve_floats : kernels.convolve_bytes)(block);
        }
    };

    for (int64_t row = 0; row < step; ++row) {
        int64_t y = begin + (row - begin % step + step) % step;
        while (y < end) {
            int64_t stop = convolution.border_bias ? y + step : end;
            while (stop < end && border_class(stop, height) == border_class(y, height))
                stop += step;
            stop = std::min(stop, end);
            convolve(y, stop);
            // The next row of this kind.
            y += divide_up(stop - y, step) * step;
        }
    }
}

} // namespace uf
