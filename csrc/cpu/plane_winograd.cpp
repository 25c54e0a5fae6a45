#include "plane_winograd.h"

#include <algorithm>

#include "convolution.h"
#include "plane_convolution.h"

namespace uf {
namespace {

// What an output takes of its four positions along an axis, and a phase's of its three.
constexpr int from_window[2][4] = {{1, 2, 1, 0}, {0, 2, -1, -1}}, from_phase[2][3] = {{1, 1, 0}, {0, 1, 1}};

// Tiles of a band: so many that they fill a block of the widest kernels.  Where a small tensor is upsampled it has a
// quarter of them, which then fill two vectors.
constexpr int64_t band_tiles = 96, upsampled_band_tiles = 128;
// Tiles of the part of a band whose sums are kept at a time: so many that their positions leave room in the second
// cache for the weights.
int64_t strip_tiles(int planes) { return planes <= 64 ? 128 : 64; }
// Lots that the phases of a small tensor are computed for one after the other, so that the positions of a phase come
// once for all of them.
constexpr int lots_together = 8, groups_together = lots_together * PlaneWinograd::lot;
// Vectors are written whole, and the widest have 16 lanes.
constexpr int64_t widest = 16;

// Tensor `name` (..., O, rows, columns, C) of int8; `lead`: what of the axes before O is chosen.
struct Weights {
    const int8_t *first;
    int outputs, positions, channels;

    std::vector<int32_t> sums; // [outputs][positions], over the channels

    Weights(const Op &op, const char *name, int lead, int of_outputs, int of_positions, int of_channels)
        : first(op.tensor(name).integers.data() + int64_t{lead} * of_outputs * of_positions * of_channels),
          outputs(of_outputs), positions(of_positions), channels(of_channels) {
        const int8_t *weight = first;
        for (int i = 0; i < outputs * positions; ++i) {
            int32_t sum = 0;
            for (int channel = 0; channel < channels; ++channel)
                sum += *weight++;
            sums.push_back(sum);
        }
    }

    const int8_t *at(int output, int position) const {
        return first + (int64_t{output} * positions + position) * channels;
    }
    int32_t sum(int output, int position) const { return sums[static_cast<size_t>(output * positions + position)]; }
};

// The weights of one group at one position; returns where they end.
std::byte *pack(const Weights &weights, int group, int position, ExcessWeights &excess, std::byte *to) {
    for (int channel = 0; channel < weights.channels; channel += 4) {
        for (int o = 0; o < plane_outputs; ++o, to += 4) {
            int8_t values[4] = {};
            if (const int output = group * plane_outputs + o; output < weights.outputs)
                copy_word(weights.at(output, position) + channel, weights.channels - channel, values);
            excess.pack(values, {channel / 4, 0, o, 0}, to);
        }
    }
    excess.end_list();
    return to;
}

// How far tiles are kept from what they stand for: the position that averages both ways holds bytes, the others hold
// numbers, and all of them are kept as the one or as the other.
int zero_at(int i, int j, bool centred) {
    const bool is_byte = i == 1 && j == 1;
    return centred ? (is_byte ? -128 : 0) : (is_byte ? 0 : 128);
}

// What that adds to the pixel of a tile which takes `row` and `column` of its positions.
template <int side>
int32_t from_zeros(const Weights &weights, int output, const int (&row)[side], const int (&column)[side],
                   bool centred) {
    int32_t result = 0;
    for (int i = 0; i < side; ++i)
        for (int j = 0; j < side; ++j)
            result += zero_at(i, j, centred) * row[i] * column[j] * weights.sum(output, i * side + j);
    return result;
}

} // namespace

PlaneWinograd prepare_plane_winograd(const Op &op, const Plan &plan, const Int8Kernels &kernels) {
    PlaneWinograd result;
    const bool upsamples = op.kind == OpKind::up_conv;
    const auto channels_of = [&](int input) { return plan.buffers[static_cast<size_t>(op.inputs[input])].channels; };
    const int outputs = static_cast<int>(op.tensor("bias").shape.back());
    result.source = upsamples ? 1 : 0;
    result.planes = static_cast<int>(divide_up(channels_of(result.source), 4));
    result.low_planes = upsamples ? static_cast<int>(divide_up(channels_of(0), 4)) : 0;
    result.groups = static_cast<int>(divide_up(outputs, plane_outputs));
    result.lots = static_cast<int>(divide_up(result.groups, PlaneWinograd::lot));
    result.border_bias = upsamples;
    const Weights windows(op, upsamples ? "weight_skip" : "weight", 0, outputs, window_positions,
                          channels_of(result.source));
    std::vector<Weights> phases;
    for (int phase = 0; upsamples && phase < 4; ++phase)
        phases.emplace_back(op, "weight_up", phase, outputs, phase_positions, channels_of(0));

    const int64_t bytes_each = int64_t{plane_outputs} * 4;
    result.group_bytes = bytes_each * (4 * phase_positions * result.low_planes + window_positions * result.planes);
    result.weights = AlignedMemory(static_cast<size_t>(result.group_bytes * result.groups));
    result.excess = ExcessWeights(kernels);
    std::byte *to = result.weights.data();
    for (int lot = 0; lot < result.lots; ++lot) {
        const auto pack_lot = [&](const Weights &weights) {
            for (int position = 0; position < weights.positions; ++position)
                for (int group = result.first_group(lot); group < result.first_group(lot + 1); ++group)
                    to = pack(weights, group, position, result.excess, to);
        };
        for (const Weights &phase : phases)
            pack_lot(phase);
        pack_lot(windows);
    }

    // Number i of a group: row, column and output of a tile.
    constexpr int each = 4 * plane_outputs;
    std::vector<int32_t> zeros;
    for (int i = 0; i < result.groups * each; ++i) {
        const int output = i / each * plane_outputs + i % plane_outputs, a = i % each / (2 * plane_outputs),
                  b = i / plane_outputs % 2;
        zeros.push_back(output < outputs ? from_zeros(windows, output, from_window[a], from_window[b], kernels.centred)
                                         : 0);
    }
    const float *const bias = op.tensor("bias").values.data();
    for (int border = 0; border < (upsamples ? 9 : 1); ++border) {
        for (int i = 0; i < result.groups * each; ++i) {
            const int output = i / each * plane_outputs + i % plane_outputs;
            result.bias.push_back(output < outputs ? static_cast<int32_t>(bias[border * outputs + output]) -
                                                         zeros[static_cast<size_t>(i)]
                                                   : 0);
        }
    }
    for (int group = 0; group < result.groups; ++group) {
        for (const Weights &phase : phases) {
            for (int i = 0; i < each; ++i) {
                const int output = group * plane_outputs + i % plane_outputs, k = i / 8, l = i / 4 % 2;
                result.phase_constants.push_back(
                    output >= outputs ? 0 : -from_zeros(phase, output, from_phase[k], from_phase[l], kernels.centred));
            }
        }
    }
    for (int output = 0; output < result.groups * plane_outputs; ++output)
        result.multiplier.push_back(
            output < outputs ? op.tensor("scale").values[static_cast<size_t>(output)] / op.output_scale : 0.0F);
    return result;
}

WinogradBands::WinogradBands(const PlaneWinograd &convolution, int64_t height, int64_t width) {
    const bool upsamples = convolution.low_planes > 0;
    const int64_t across = divide_up(width, 2), down = divide_up(height, 2), low_across = divide_up(across, 2);
    // A tile of the small tensor gives two rows of tiles.
    const int64_t strip = strip_tiles(convolution.planes);
    const int64_t tiles = upsamples ? upsampled_band_tiles : std::min(band_tiles, strip);
    const int64_t tile_rows = round_up(std::clamp(divide_up(tiles, across), int64_t{1}, down), upsamples ? 2 : 1);
    strip_rows = std::clamp(strip / across, int64_t{1}, tile_rows);
    rows = 2 * tile_rows;
    bands = divide_up(height, rows);
    // Vectors that begin inside a row are written whole.
    tile_stride = 4 * (round_up(tile_rows * across, widest) + widest);
    sum_stride = 4 * (round_up(strip_rows * across, widest) + widest);
    low_stride = upsamples ? 4 * (round_up(tile_rows / 2 * low_across, widest) + widest) : 0;
    row_stride = 8 * round_up(across, widest);
    addend_stride = tile_rows * row_stride;
    low_positions = window_positions * convolution.planes * tile_stride;
    sums = low_positions + uf::low_positions * convolution.low_planes * low_stride;
    low_sums = sums + PlaneWinograd::lot * window_positions * plane_outputs * sum_stride;
    addends = low_sums + PlaneWinograd::lot * phase_positions * plane_outputs * low_stride;
    const int with_addends = upsamples ? std::min(convolution.groups, groups_together) : 0;
    spare_row = addends + with_addends * 4 * plane_outputs * addend_stride;
    bytes = spare_row + row_stride;
}

namespace {

// One band of one image.
class WinogradBand {
  public:
    WinogradBand(const PlaneWinograd &convolution, const Int8Kernels &kernels, const Planes *const *sources,
                 const Planes &to, const WinogradBands &bands, int64_t image, int64_t band, std::byte *scratch)
        : convolution_(convolution), kernels_(kernels), to_(to), bands_(bands),
          scratch_(reinterpret_cast<char *>(scratch)), image_(image), begin_(band * bands.rows),
          tile_rows_(divide_up(std::min<int64_t>(bands.rows, to.height - begin_), 2)), across_(divide_up(to.width, 2)),
          low_rows_(divide_up(tile_rows_, 2)), low_across_(divide_up(across_, 2)) {
        for (int64_t row = 0; row < tile_rows_; ++row)
            kernels.winograd->transform(windows(*sources[convolution.source], begin_ + 2 * row, convolution.planes,
                                                across_, scratch_ + 4 * row * across_, bands.tile_stride));
        if (convolution.low_planes == 0)
            return;
        for (int64_t row = 0; row < low_rows_; ++row)
            kernels.winograd->transform_low(windows(*sources[0], begin_ / 2 + 2 * row, convolution.low_planes,
                                                    low_across_, scratch_ + bands.low_positions + 4 * row * low_across_,
                                                    bands.low_stride));
    }

    void compute(int first_lot, int last_lot) const {
        for (int first = first_lot; first < last_lot; first += lots_together) {
            const int last = std::min(first + lots_together, last_lot);
            for (int phase = 0; phase < phases(); ++phase)
                for (int lot = first; lot < last; ++lot)
                    compute_phase(phase, lot);
            for (int64_t row = 0; row < tile_rows_; row += bands_.strip_rows)
                for (int lot = first; lot < last; ++lot)
                    compute_strip(row, std::min(row + bands_.strip_rows, tile_rows_), lot);
        }
    }

  private:
    // The windows of a row of tiles whose first output, or low pixel, is (y, 0).
    TileWindows windows(const Planes &source, int64_t y, int planes, int64_t tiles, char *to, int64_t stride) const {
        return {reinterpret_cast<const char *>(source.row(image_, 0, y - 1) - Planes::pixel_bytes),
                source.row_stride,
                source.plane_stride,
                planes,
                tiles,
                to,
                planes * stride,
                stride};
    }

    int phases() const { return convolution_.low_planes > 0 ? 4 : 0; }
    // Positions are numbered as their weights lie: those of the phases, then those of the windows.
    int first_window() const { return phases() * phase_positions; }
    int first_group(int lot) const { return convolution_.first_group(lot); }
    int groups(int lot) const { return first_group(lot + 1) - first_group(lot); }
    // Of a lot, from position `number` on.
    const char *weights(int lot, int number) const {
        const int64_t bytes_of_plane = int64_t{groups(lot)} * plane_outputs * 4;
        const int64_t of_phases = std::min(number, first_window()), of_windows = number - of_phases;
        return reinterpret_cast<const char *>(
            convolution_.weights.data() + first_group(lot) * convolution_.group_bytes +
            bytes_of_plane * (of_phases * convolution_.low_planes + of_windows * convolution_.planes));
    }
    ExcessLists excess(int lot, int number) const {
        return convolution_.excess.lists(
            static_cast<size_t>(first_group(lot) * (first_window() + window_positions) + groups(lot) * number));
    }

    // Of group number i of a lot.
    char *sums(int i) const {
        return scratch_ + bands_.sums + i * window_positions * plane_outputs * bands_.sum_stride;
    }
    char *low_sums(int i) const {
        return scratch_ + bands_.low_sums + i * phase_positions * plane_outputs * bands_.low_stride;
    }
    char *addends(int group, int phase, int64_t row) const {
        return scratch_ + bands_.addends +
               (group % groups_together * 4 + phase) * plane_outputs * bands_.addend_stride + row * bands_.row_stride;
    }

    void compute_phase(int phase, int lot) const {
        const int planes = convolution_.low_planes, corner = phase / 2 * 2 * low_side + phase % 2 * 2;
        const int64_t stride = bands_.low_stride;
        kernels_.winograd->multiply({scratch_ + bands_.low_positions + corner * planes * stride, 3, low_side, planes,
                                     stride, groups(lot), weights(lot, phase * phase_positions),
                                     excess(lot, phase * phase_positions),
                                     divide_up(low_rows_ * low_across_, kernels_.lanes), low_sums(0), stride});
        for (int i = 0; i < groups(lot); ++i) {
            const int group = first_group(lot) + i;
            const int32_t *constants = convolution_.phase_constants.data() + (group * 4 + phase) * 4 * plane_outputs;
            for (int64_t row = 0; row < low_rows_; ++row)
                kernels_.winograd->finish_phase({low_sums(i) + 4 * row * low_across_, plane_outputs * stride, stride,
                                                 low_across_, constants, addends(group, phase, 2 * row),
                                                 addends(group, phase, 2 * row + 1), bands_.addend_stride});
        }
    }

    // Rows [first, last) of tiles.
    void compute_strip(int64_t first, int64_t last, int lot) const {
        kernels_.winograd->multiply({scratch_ + 4 * first * across_, 4, 4, convolution_.planes, bands_.tile_stride,
                                     groups(lot), weights(lot, first_window()), excess(lot, first_window()),
                                     divide_up((last - first) * across_, kernels_.lanes), sums(0), bands_.sum_stride});
        for (int i = 0; i < groups(lot); ++i)
            for (int64_t row = first; row < last; ++row)
                finish(first_group(lot) + i, row, sums(i) + 4 * (row - first) * across_);
    }

    void finish(int group, int64_t row, const char *sums) const {
        const int64_t y = begin_ + 2 * row;
        constexpr int of_row = 2 * plane_outputs;
        int32_t bias[2 * of_row], first[of_row], last[of_row];
        for (int a = 0; a < 2; ++a) {
            const auto biases = [&](int64_t border) {
                return convolution_.bias.data() + ((border * convolution_.groups + group) * 2 + a) * of_row;
            };
            const int64_t border = convolution_.border_bias ? 3 * border_class(y + a, to_.height) + 1 : 0;
            std::copy_n(biases(border), of_row, bias + a * of_row);
            for (int o = 0; convolution_.border_bias && o < plane_outputs; ++o) {
                first[a * plane_outputs + o] = biases(border - 1)[o] - biases(border)[o];
                last[a * plane_outputs + o] = biases(border + 1)[plane_outputs + o] - biases(border)[plane_outputs + o];
            }
        }
        auto *const upper = reinterpret_cast<char *>(to_.row(image_, group, y));
        TileOutputs outputs = {};
        outputs.sums = sums;
        outputs.position_stride = plane_outputs * bands_.sum_stride;
        outputs.output_stride = bands_.sum_stride;
        if (convolution_.low_planes > 0) {
            outputs.addends = addends(group, 0, row);
            outputs.pixel_stride = plane_outputs * bands_.addend_stride;
            outputs.addend_output_stride = bands_.addend_stride;
        }
        outputs.tiles = across_;
        outputs.bias = bias;
        if (convolution_.border_bias) {
            outputs.first_bias = first;
            outputs.last_bias = last;
        }
        outputs.multiplier = convolution_.multiplier.data() + group * plane_outputs;
        outputs.upper = upper;
        outputs.lower = y + 1 < to_.height ? upper + to_.row_stride : scratch_ + bands_.spare_row;
        kernels_.winograd->finish(outputs);
    }

    const PlaneWinograd &convolution_;
    const Int8Kernels &kernels_;
    const Planes &to_;
    const WinogradBands &bands_;
    char *const scratch_;
    const int64_t image_, begin_, tile_rows_, across_, low_rows_, low_across_;
};

} // namespace

void convolve_winograd(const PlaneWinograd &convolution, const Int8Kernels &kernels, const Planes *const *sources,
                       const Planes &to, const WinogradBands &bands, int64_t image, int64_t band, int first_lot,
                       int last_lot, std::byte *scratch) {
    WinogradBand(convolution, kernels, sources, to, bands, image, band, scratch).compute(first_lot, last_lot);
}

} // namespace uf
