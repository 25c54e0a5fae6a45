// Weights from the order of the file to that of the products, transformed or, if that is done for each pass, as they
// are.

#include "winograd.h"

#include <algorithm>
#include <cstring>

namespace uf {
namespace {

constexpr int kernel_side = 3, most_lanes = 16;

// Input channels whose taps are read together: a line of cache.  Where channels are many, the taps of one lie powers of
// two apart and drive each other's lines out of the first cache: one channel at a time, `relunet16` took 1.5 of 13 ms
// more to open.
constexpr int64_t most_gathered = 16;

// Positions that are not skipped.
int64_t positions_of(const WinogradConvolution &convolution, const WinogradPhase &phase) {
    return phase.rows_before(convolution.window()) * static_cast<int64_t>(phase.columns.size());
}

// Weights in the file of one source and phase: for output o, kernel position (ky, kx) and input channel c,
// first[o * output_stride + ky * row_stride + kx * column_stride + c].  A kernel of 2x2 stands `row` and `column`
// further inside one of 3x3 that is otherwise zero.
struct Filter {
    const float *first;
    int64_t output_stride, row_stride, column_stride;
    int side, row, column, channels;
};

// Four rows of four numbers -> columns.
void transpose(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    const auto row = [&](int64_t i) { return *reinterpret_cast<const Four *>(from + i * from_stride); };
    const Four a = row(0), b = row(1), c = row(2), d = row(3);
    const Four low_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Four low_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const auto store = [&](int64_t i, Four column) { *reinterpret_cast<Four *>(to + i * to_stride) = column; };
    store(0, __builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5));
    store(1, __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7));
    store(2, __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5));
    store(3, __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7));
}

class Builder {
  public:
    Builder(const WinogradForm &form, const KernelTable &kernels, int64_t channels) : kernels_(kernels) {
        result_.tile = form.tile;
        result_.products = form.products;
        result_.transforms_late = form.transforms_late;
        result_.lanes = kernels.lanes;
        result_.channels = static_cast<int>(channels);
        result_.padded_channels = round_up(result_.channels, kernels.lanes);
        result_.blocks = channel_blocks(result_.padded_channels, kernels);
    }

    WinogradConvolution &result() { return result_; }

    void add_source(int input, int channels, int dy, int dx) {
        const int begin = sources_end_;
        sources_end_ += round_up(channels, kernels_.lanes);
        result_.sources.push_back({input, sources_end_ - begin, begin, dy, dx});
        result_.units = units_of(begin + channels);
    }

    // `filters`: one per source.
    void add_phase(int row, int column, std::vector<Filter> filters) {
        const int n = result_.tile + 2;
        WinogradPhase phase;
        phase.row = row;
        phase.column = column;
        if (filters[0].side < kernel_side) {
            phase.skipped_row = filters[0].row == 0 ? n - 1 : 0;
            phase.skipped_column = filters[0].column == 0 ? n - 1 : 0;
        }
        for (int column = 0; column < n; ++column) {
            if (column != phase.skipped_column)
                phase.columns.push_back(static_cast<unsigned char>(column));
        }
        result_.phases.push_back(std::move(phase));
        filters_.push_back(std::move(filters));
    }

    WinogradConvolution pack(ThreadPool &pool) {
        for (WinogradPhase &phase : result_.phases) {
            phase.first_weight = result_.block_weights;
            result_.block_weights +=
                result_.units * (result_.transforms_late ? phase.taps() : positions_of(result_, phase));
        }
        result_.weights = AlignedMemory(static_cast<size_t>(result_.block_weights * result_.padded_channels) * 4);
        const auto vectors = static_cast<int64_t>(result_.padded_channels / result_.lanes);
        const auto phases = static_cast<int64_t>(result_.phases.size());
        pool.run(vectors * phases, [&](int64_t task, int) { pack_vector(task / phases, task % phases); });
        return std::move(result_);
    }

  private:
    // Of a unit.
    int channels_each() const { return result_.products == Products::float32 ? 1 : 2; }
    int64_t units_of(int channels) const { return divide_up(channels, channels_each()); }

    // All weights of one vector of output channels in one phase.
    void pack_vector(int64_t vector, int64_t number) const {
        const WinogradPhase &phase = result_.phases[static_cast<size_t>(number)];
        const auto is_ours = [&](const ChannelBlock &block) {
            return vector >= block.first_vector && vector < block.first_vector + block.vectors;
        };
        const ChannelBlock &block = *std::find_if(result_.blocks.begin(), result_.blocks.end(), is_ours);
        const int64_t vector_bytes = static_cast<int64_t>(result_.lanes) * 4,
                      block_bytes = block.vectors * vector_bytes;
        std::byte *of_block = result_.weights.data() + result_.block_weights * block.first_vector * vector_bytes +
                              phase.first_weight * block_bytes;
        std::byte *to = of_block + (vector - block.first_vector) * vector_bytes;
        const int64_t unit_channels = channels_each(), tap_count = phase.taps(), lanes = result_.lanes;
        for (size_t s = 0; s < result_.sources.size(); ++s) {
            const WinogradSource &source = result_.sources[s];
            const Filter &filter = filters_[static_cast<size_t>(number)][s];
            const int64_t end =
                std::min<int64_t>(source.first_channel + source.channels, result_.units * unit_channels);
            for (int64_t first = source.first_channel; first < end; first += most_gathered) {
                const int64_t channels = std::min(most_gathered, end - first), of_source = first - source.first_channel;
                if (result_.transforms_late) {
                    const int64_t tap_floats = block.vectors * lanes;
                    gather(filter, of_source, channels, vector * lanes,
                           reinterpret_cast<float *>(to + first * tap_count * block_bytes), tap_count * tap_floats,
                           tap_floats);
                    continue;
                }
                alignas(64) float taps[most_gathered * kernel_side * kernel_side * most_lanes];
                gather(filter, of_source, channels, vector * lanes, taps, tap_count * lanes, lanes);
                for (int64_t i = 0; i < channels; ++i) {
                    // Where the first of the lanes goes, and how many numbers lie from each to the next.
                    const int64_t unit = (first + i) / unit_channels, part = (first + i) % unit_channels;
                    std::byte *first_lane = to + part * 2;
                    int64_t step = unit_channels;
                    if (result_.products == Products::fp16) {
                        first_lane = of_block + (part * block.vectors + vector - block.first_vector) * vector_bytes / 2;
                        step = 1;
                    }
                    pack_positions(taps + i * tap_count * lanes, phase, first_lane + unit * block_bytes, step,
                                   result_.units * block_bytes);
                }
            }
        }
    }

    // [channel][tap][lanes] with those strides, in floats; channels and outputs beyond the last are zero.
    void gather(const Filter &filter, int64_t first_channel, int64_t channels, int64_t first_output, float *to,
                int64_t channel_stride, int64_t tap_stride) const {
        constexpr int64_t four = 4;
        const int64_t existing = std::clamp<int64_t>(filter.channels - first_channel, 0, channels);
        for (int tap = 0; tap < filter.side * filter.side; ++tap, to += tap_stride) {
            const float *from = filter.first + first_output * filter.output_stride +
                                tap / filter.side * filter.row_stride + tap % filter.side * filter.column_stride +
                                first_channel;
            for (int64_t lane = 0; lane < result_.lanes; lane += four, from += four * filter.output_stride) {
                const int64_t outputs = std::clamp<int64_t>(result_.channels - first_output - lane, 0, four);
                for (int64_t channel = 0; channel < channels; channel += four) {
                    if (outputs == four && channel + four <= existing) {
                        transpose(from + channel, filter.output_stride, to + channel * channel_stride + lane,
                                  channel_stride);
                        continue;
                    }
                    for (int64_t i = channel; i < std::min(channel + four, channels); ++i) {
                        for (int64_t output = 0; output < four; ++output) {
                            to[i * channel_stride + lane + output] =
                                output < outputs && i < existing ? from[output * filter.output_stride + i] : 0.0F;
                        }
                    }
                }
            }
        }
    }

    // Of one channel; those of float32 go where they belong at once.
    void pack_positions(const float *taps, const WinogradPhase &phase, std::byte *to, int64_t step,
                        int64_t position_stride) const {
        constexpr int most_positions = 36;
        alignas(64) float positions[most_positions * most_lanes];
        const int64_t lanes = result_.lanes, float_bytes = sizeof(float);
        const bool direct = result_.products == Products::float32;
        std::byte *const target = direct ? to : reinterpret_cast<std::byte *>(positions);
        const int64_t stride = direct ? position_stride : lanes * float_bytes;
        const auto row_of = [&](int row) {
            const int64_t first = phase.rows_before(row) * static_cast<int64_t>(phase.columns.size());
            return phase.skips(row) ? nullptr : reinterpret_cast<float *>(target + first * stride);
        };
        for (int pair = 0; pair < result_.window() / 2; ++pair) {
            const auto [row, other] = result_.row_pair(pair);
            kernels_.winograd->weights({result_.tile,
                                        row,
                                        phase.skipped_row,
                                        phase.skipped_column,
                                        taps,
                                        1,
                                        1,
                                        {row_of(row), row_of(other)},
                                        stride});
        }
        for (int64_t i = 0; !direct && i < positions_of(result_, phase); ++i, to += position_stride) {
            const float *from = positions + i * lanes;
            if (result_.products == Products::bf16)
                round_to<Bf16>(from, result_.lanes, to, step);
            else
                round_to<Fp16>(from, result_.lanes, to, step);
        }
    }

    template <class Number> static void round_to(const float *from, int lanes, std::byte *to, int64_t step) {
        for (int lane = 0; lane < lanes; ++lane)
            from_float(from[lane], reinterpret_cast<Number *>(to)[lane * step]);
    }

    const KernelTable &kernels_;
    WinogradConvolution result_;
    int sources_end_ = 0;
    std::vector<std::vector<Filter>> filters_; // [phase][source]
};

// The weights of a 3x3 convolution over one source, (O, 3, 3, C).
Filter whole_filter(const Op &op, const char *name, int channels) {
    const float *first = values_of(op, name, output_channels(op) * 9 * channels);
    return {first, int64_t{9} * channels, int64_t{3} * channels, channels, 3, 0, 0, channels};
}

// The part of an up_conv that reads the low resolution: four phases of 2x2 taps, each inside the same 3x3 window.
WinogradConvolution prepare_up(const Op &op, int channels, const WinogradForm &form, const KernelTable &kernels,
                               ThreadPool &pool) {
    const int64_t outputs = output_channels(op);
    const float *weights = values_of(op, "weight_up", 16 * outputs * channels);
    Builder builder(form, kernels, outputs);
    builder.result().stride = 2;
    // The first row that output row `row` reads, and the phase of its weights: see docs/design.md, "up_conv".
    const auto first_tap = [&](int row) {
        const int middle = row + 1 - op.padding[0];
        return (middle >> 1) - 1 + (middle & 1);
    };
    const int begin = std::min(first_tap(0), first_tap(1));
    builder.add_source(0, channels, begin, begin);
    for (int row = 0; row < 2; ++row) {
        for (int column = 0; column < 2; ++column) {
            const int phase = 2 * ((row + 1 - op.padding[0]) & 1) + ((column + 1 - op.padding[0]) & 1);
            builder.add_phase(row, column,
                              {{weights + phase * outputs * 4 * channels, int64_t{4} * channels, int64_t{2} * channels,
                                channels, 2, first_tap(row) - begin, first_tap(column) - begin, channels}});
        }
    }
    WinogradConvolution &result = builder.result();
    const auto bias = static_cast<size_t>(result.padded_channels) * sizeof(float);
    result.epilogue.bias = AlignedMemory(bias);
    std::memset(result.epilogue.bias.data(), 0, bias);
    return builder.pack(pool);
}

} // namespace

bool has_winograd_form(const Op &op) {
    if (op.int8)
        return false;
    switch (op.kind) {
    case OpKind::conv:
    case OpKind::head:
    case OpKind::concat_conv:
        return op.kernel[0] == kernel_side && op.kernel[1] == kernel_side && op.upsample == UpsampleMode::none;
    case OpKind::up_conv:
        return true;
    default:
        return false;
    }
}

std::vector<WinogradConvolution> prepare_winograd(const Op &op, const std::vector<int> &channels,
                                                  const std::vector<WinogradForm> &forms, const KernelTable &kernels,
                                                  ThreadPool &pool) {
    std::vector<WinogradConvolution> result;
    if (op.kind == OpKind::up_conv)
        result.push_back(prepare_up(op, channels[0], forms[0], kernels, pool));
    Builder builder(forms.back(), kernels, output_channels(op));
    const int y = -op.padding[0], x = -op.padding[1];
    switch (op.kind) {
    case OpKind::up_conv:
        builder.add_source(1, channels[1], op.crop[0] + y, op.crop[1] + x);
        builder.add_phase(0, 0, {whole_filter(op, "weight_skip", channels[1])});
        builder.result().adds = true;
        break;
    case OpKind::concat_conv:
        builder.add_source(0, channels[0], y, x);
        builder.add_source(1, channels[1], op.crop[0] + y, op.crop[1] + x);
        builder.add_phase(0, 0, {whole_filter(op, "weight_a", channels[0]), whole_filter(op, "weight_b", channels[1])});
        break;
    default:
        builder.add_source(0, channels[0], y, x);
        builder.add_phase(0, 0, {whole_filter(op, "weight", channels[0])});
        break;
    }
    builder.result().epilogue = make_epilogue(op, kernels);
    result.push_back(builder.pack(pool));
    return result;
}

} // namespace uf
