#include "plane_convolution.h"

#include <algorithm>
#include <numeric>

#include "convolution.h"

namespace uf {
namespace {

constexpr int most_parts = 4, most_taps = 16, most_block = 8;

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
        : result_(result), op_(op), centred_(kernels.centred) {
        result_.rows.resize(1);
        result_.excess = ExcessWeights(kernels);
    }

    PlanePart part(int source, const Element *first, int64_t output_stride, int channels,
                   std::vector<std::array<int, 2>> taps, bool halved) {
        PlanePart part;
        part.source = source;
        part.planes = static_cast<int>(divide_up(channels, plane_channels));
        part.halved = halved;
        part.number = result_.parts++;
        part.first_weight = result_.group_bytes;
        weights_.push_back({first, output_stride, channels, taps.size(), part.first_weight});
        result_.group_bytes += static_cast<int64_t>(part.planes * taps.size()) * plane_outputs * 4;
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
                        for (int output = 0; output < plane_outputs; ++output, to += 4)
                            pack_word(part, group * plane_outputs + output, tap, channel, to);
                result_.excess.end_list();
                if constexpr (plane_channels == 4)
                    for (int output = 0; centred_ && output < plane_outputs; ++output)
                        result_.zeros.push_back(128 * sum(part, group * plane_outputs + output));
            }
        }
    }

  private:
    int32_t sum(const PartWeights<Element> &part, int output) const {
        if (output >= result_.channels)
            return 0;
        const Element *from = part.first + output * part.output_stride;
        return std::accumulate(from, from + part.taps * static_cast<size_t>(part.channels), int32_t{0});
    }

    void pack_word(const PartWeights<Element> &part, int output, size_t tap, int channel, std::byte *to) {
        Element values[plane_channels] = {};
        if (output < result_.channels) {
            const Element *from =
                part.first + output * part.output_stride + static_cast<int64_t>(tap) * part.channels + channel;
            copy_word(from, part.channels - channel, values);
        }
        if constexpr (plane_channels == 4)
            result_.excess.pack(values, {channel / plane_channels, static_cast<int>(tap), output % plane_outputs, 0},
                                to);
        else
            std::memcpy(to, values, sizeof(Element));
    }

    PlaneConvolution &result_;
    const Op &op_;
    const bool centred_;
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

// Walks over the blocks of a band, and at each of them over its groups.
class BandLoop {
  public:
    BandLoop(const PlaneConvolution &convolution, const Int8Kernels &kernels, const Planes *const *sources,
             const PlaneBand &band, const PlaneTarget &target)
        : convolution_(convolution), kernels_(kernels), sources_(sources), band_(band), target_(target),
          step_(static_cast<int64_t>(convolution.rows.size())), share_(convolution.interleaved ? 2 : 1),
          places_(divide_up(band.width, share_ * kernels.lanes)), apart_(kernels.lanes * Planes::pixel_bytes) {
        block_.interleaved = convolution.interleaved;
        block_.parts = parts_;
        block_.first_bias = first_bias_;
        block_.last_bias = last_bias_;
        block_.last_lane = static_cast<int>((band.width - 1) % kernels.lanes);
        block_.to_bytes = convolution.to_bytes;
        block_.relu = convolution.relu;
        block_.output_plane_stride = target.plane_stride;
        block_.output_pixels = output_pixels_;
    }

    // Rows that take the same parts and the same bias go together.
    void run() {
        for (int64_t row = 0; row < step_; ++row) {
            int64_t y = band_.begin + (row - band_.begin % step_ + step_) % step_;
            while (y < band_.end) {
                int64_t stop = convolution_.border_bias ? y + step_ : band_.end;
                while (stop < band_.end && border_class(stop, band_.height) == border_class(y, band_.height))
                    stop += step_;
                const int64_t rows = divide_up(std::min(stop, band_.end) - y, step_);
                aim(y);
                convolve_rows(y, rows);
                y += rows * step_;
            }
        }
    }

  private:
    // Points the parts at what row y reads.
    void aim(int64_t y) {
        row_parts_ = &convolution_.rows[static_cast<size_t>(y % step_)];
        block_.part_count = static_cast<int>(row_parts_->size());
        for (size_t i = 0; i < row_parts_->size(); ++i) {
            const PlanePart &part = (*row_parts_)[i];
            const Planes &source = *sources_[part.source];
            line_strides_[i] = part.halved ? source.row_stride : step_ * source.row_stride;
            in_pairs_[i] = share_ == 2 && !part.halved;
            for (size_t tap = 0; tap < part.taps.size(); ++tap)
                taps_[i][tap] = part.taps[tap][0] * source.row_stride + part.taps[tap][1] * Planes::pixel_bytes;
            parts_[i].input = reinterpret_cast<const char *>(source.row(band_.image, 0, part.halved ? y / 2 : y));
            parts_[i].plane_stride = source.plane_stride;
            parts_[i].planes = part.planes;
            parts_[i].pixels = pixels_[i];
            parts_[i].taps = taps_[i];
            parts_[i].tap_count = static_cast<int>(part.taps.size());
        }
        row_class_ = convolution_.border_bias ? border_class(y, band_.height) : 0;
    }

    // `rows` rows from y on, in blocks of almost equal size, so that none is a small, slow remainder.
    void convolve_rows(int64_t y, int64_t rows) {
        const int64_t total = rows * places_, blocks = divide_up(total, kernels_.most_vectors / share_);
        int64_t line = 0, place = 0; // counted, not divided: there is little time between the blocks of a thin op
        for (int64_t number = 0; number < blocks; ++number) {
            const int64_t slots = total * (number + 1) / blocks - total * number / blocks;
            block_.vectors = static_cast<int>(slots * share_);
            block_.first = block_.last = 0;
            for (int64_t slot = 0; slot < slots; ++slot) {
                put(slot, line, place, (y - band_.begin + line * step_) * target_.row_stride);
                if (++place == places_) {
                    place = 0;
                    ++line;
                }
            }
            for (int group = band_.first_group; group < band_.last_group; ++group)
                compute(group);
        }
    }

    // Slot `slot` of the block, a vector or a pair of them, is number `place` of a line.
    void put(int64_t slot, int64_t line, int64_t place, int64_t output) {
        for (int i = 0; i < block_.part_count; ++i) {
            const int64_t at = line * line_strides_[i];
            if (in_pairs_[i]) {
                pixels_[i][2 * slot] = at + 2 * place * apart_;
                pixels_[i][2 * slot + 1] = at + (2 * place + 1) * apart_;
            } else {
                pixels_[i][slot] = at + place * apart_;
            }
        }
        for (int64_t v = 0; v < share_; ++v)
            output_pixels_[share_ * slot + v] = output + (share_ * place + v) * apart_;
        if (!convolution_.border_bias)
            return;
        block_.first |= place == 0 ? 1U << (share_ * slot) : 0U;
        if (place == places_ - 1)
            block_.last |= 1U << (share_ * slot + (band_.width - 1) / kernels_.lanes % share_);
    }

    void compute(int group) {
        const int channel = group * plane_outputs, padded = convolution_.groups * plane_outputs;
        const std::byte *weights = convolution_.weights.data() + group * convolution_.group_bytes;
        for (int i = 0; i < block_.part_count; ++i) {
            const PlanePart &part = (*row_parts_)[i];
            parts_[i].weights = reinterpret_cast<const char *>(weights + part.first_weight);
            const auto number = static_cast<size_t>(group * convolution_.parts + part.number);
            parts_[i].excess = convolution_.excess.list(number);
            if (kernels_.centred)
                parts_[i].zeros = convolution_.zeros.data() + plane_outputs * number;
        }
        block_.multiplier = convolution_.multiplier.data() + channel;
        block_.output = reinterpret_cast<char *>(target_.data + (group - band_.first_group) * target_.group_stride);
        if (convolution_.of_floats) {
            block_.bias = convolution_.float_bias.data() + channel;
            return kernels_.convolve_floats(block_);
        }
        const int32_t *bias = convolution_.bias.data() + channel;
        if (convolution_.border_bias) {
            const int32_t *first = bias + 3 * row_class_ * padded, *last = first + 2 * padded;
            bias = first + padded;
            for (int o = 0; o < plane_outputs; ++o) {
                first_bias_[o] = first[o] - bias[o];
                last_bias_[o] = last[o] - bias[o];
            }
        }
        block_.bias = bias;
        kernels_.convolve_bytes(block_);
    }

    const PlaneConvolution &convolution_;
    const Int8Kernels &kernels_;
    const Planes *const *sources_;
    const PlaneBand &band_;
    const PlaneTarget &target_;
    const int64_t step_, share_, places_; // of rows; vectors per place; places per row
    const int64_t apart_;                 // bytes of a vector
    const std::vector<PlanePart> *row_parts_ = nullptr;
    int64_t row_class_ = 0;
    PlaneBlock block_ = {};
    PlaneTaps parts_[most_parts];
    int64_t taps_[most_parts][most_taps], pixels_[most_parts][most_block], output_pixels_[most_block];
    int64_t line_strides_[most_parts];
    bool in_pairs_[most_parts]; // the vectors of a pair lie side by side in this source
    int32_t first_bias_[plane_outputs] = {}, last_bias_[plane_outputs] = {};
};

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
                     const PlaneBand &band, const PlaneTarget &target) {
    BandLoop(convolution, kernels, sources, band, target).run();
}

} // namespace uf
