#include "winograd.h"

#include <algorithm>
#include <cstring>
namespace uf {
namespace {

constexpr int kernel_side = 3, most_lanes = 16;

// Units of which weights are transformed together: the second cache holds their positions (288 KB with AVX-512) beside
// products, and sums are stored and loaded again once for so many multiply-adds.
constexpr int64_t late_units = 64;

int64_t taps_of(const WinogradPhase &phase) { return phase.skipped_row < 0 ? 9 : 4; }

// Weights in the file of one source and phase: for output o, kernel position (ky, kx) and input channel c,
// first[o * output_stride + ky * row_stride + kx * column_stride + c].  A kernel of 2x2 stands `row` and `column`
// further inside one of 3x3 that is otherwise zero.
struct Filter {
    const float *first;
    int64_t output_stride, row_stride, column_stride;
    int side, row, column, channels;
};

class Builder {
  public:
    Builder(const WinogradForm &form, const KernelTable &kernels, int64_t channels) : kernels_(kernels) {
        result_.tile = form.tile;
        result_.bf16_products = form.bf16_products;
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
        for (int position = 0; position < n * n; ++position) {
            if (position / n != phase.skipped_row && position % n != phase.skipped_column)
                phase.positions.push_back(static_cast<unsigned char>(position));
        }
        result_.phases.push_back(std::move(phase));
        filters_.push_back(std::move(filters));
    }

    WinogradConvolution pack(ThreadPool &pool) {
        for (WinogradPhase &phase : result_.phases) {
            phase.first_weight = result_.block_weights;
            const auto positions = static_cast<int64_t>(phase.positions.size());
            result_.block_weights += result_.units * (result_.transforms_late ? taps_of(phase) : positions);
        }
        result_.weights = AlignedMemory(static_cast<size_t>(result_.block_weights * result_.padded_channels) * 4);
        const auto vectors = static_cast<int64_t>(result_.padded_channels / result_.lanes);
        const auto phases = static_cast<int64_t>(result_.phases.size());
        pool.run(vectors * phases, [&](int64_t task, int) { pack_vector(task / phases, task % phases); });
        return std::move(result_);
    }

  private:
    int64_t units_of(int channels) const { return result_.bf16_products ? (channels + 1) / 2 : channels; }

    // All weights of one vector of output channels in one phase.
    void pack_vector(int64_t vector, int64_t number) const {
        const WinogradPhase &phase = result_.phases[static_cast<size_t>(number)];
        const auto is_ours = [&](const ChannelBlock &block) {
            return vector >= block.first_vector && vector < block.first_vector + block.vectors;
        };
        const ChannelBlock &block = *std::find_if(result_.blocks.begin(), result_.blocks.end(), is_ours);
        const int64_t vector_bytes = static_cast<int64_t>(result_.lanes) * 4,
                      block_bytes = block.vectors * vector_bytes;
        std::byte *to = result_.weights.data() + result_.block_weights * block.first_vector * vector_bytes +
                        phase.first_weight * block_bytes + (vector - block.first_vector) * vector_bytes;
        const int unit_channels = result_.bf16_products ? 2 : 1;
        for (size_t s = 0; s < result_.sources.size(); ++s) {
            const WinogradSource &source = result_.sources[s];
            const int64_t end =
                std::min<int64_t>(source.first_channel + source.channels, result_.units * unit_channels);
            for (int64_t channel = source.first_channel; channel < end; ++channel) {
                const int64_t unit = channel / unit_channels;
                const Filter &filter = filters_[static_cast<size_t>(number)][s];
                alignas(64) float taps[kernel_side * kernel_side * most_lanes];
                gather(filter, static_cast<int>(channel - source.first_channel), vector * result_.lanes, taps);
                if (result_.transforms_late) {
                    const int64_t tap_count = taps_of(phase);
                    for (int64_t tap = 0; tap < tap_count; ++tap) {
                        std::memcpy(to + (unit * tap_count + tap) * block_bytes, taps + tap * result_.lanes,
                                    static_cast<size_t>(vector_bytes));
                    }
                } else {
                    pack_positions(taps, phase, to + unit * block_bytes, static_cast<int>(channel % unit_channels),
                                   result_.units * block_bytes);
                }
            }
        }
    }

    // [tap][lanes] of one input channel; channels and outputs beyond the last are zero.
    void gather(const Filter &filter, int channel, int64_t first_output, float *taps) const {
        const int lanes = result_.lanes;
        const bool exists = channel < filter.channels;
        const int64_t outputs = exists ? std::min<int64_t>(lanes, result_.channels - first_output) : 0;
        for (int y = 0; y < filter.side; ++y) {
            for (int x = 0; x < filter.side; ++x, taps += lanes) {
                const float *from = filter.first + first_output * filter.output_stride + y * filter.row_stride +
                                    x * filter.column_stride + channel;
                for (int64_t output = 0; output < lanes; ++output)
                    taps[output] = output < outputs ? from[output * filter.output_stride] : 0.0F;
            }
        }
    }

    // `part` of a unit of bf16.
    void pack_positions(const float *taps, const WinogradPhase &phase, std::byte *to, int part,
                        int64_t position_stride) const {
        constexpr int most_positions = 36;
        alignas(64) float positions[most_positions * most_lanes];
        const int lanes = result_.lanes;
        kernels_.winograd->weights({result_.tile, phase.skipped_row, phase.skipped_column, taps, 1, 1, positions,
                                    lanes * static_cast<int64_t>(sizeof(float))});
        for (size_t i = 0; i < phase.positions.size(); ++i) {
            const float *from = positions + static_cast<int64_t>(i) * lanes;
            if (result_.bf16_products) {
                auto *pairs = reinterpret_cast<Bf16 *>(to) + part;
                for (int lane = 0; lane < lanes; ++lane)
                    from_float(from[lane], pairs[2 * lane]);
            } else {
                std::copy_n(from, lanes, reinterpret_cast<float *>(to));
            }
            to += position_stride;
        }
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

int widest_block(const WinogradConvolution &convolution) {
    int vectors = 0;
    for (const ChannelBlock &block : convolution.blocks)
        vectors = std::max(vectors, block.vectors);
    return vectors;
}

int64_t window_element(const WinogradConvolution &convolution) {
    return static_cast<int64_t>(convolution.bf16_products ? sizeof(Bf16) : sizeof(float));
}

// Of all sources, padded.
int64_t input_channels(const WinogradConvolution &convolution) {
    const WinogradSource &last = convolution.sources.back();
    return last.first_channel + last.channels;
}

// Of windows; a product takes so many.
int64_t part_channels(const WinogradConvolution &convolution) {
    const int64_t channels = input_channels(convolution);
    return convolution.transforms_late ? std::min(late_units, channels) : channels;
}

// Lines of cache; an odd number of them from position to position keeps those of a tile in different sets.
int64_t odd_lines(int64_t bytes) {
    constexpr int64_t line = 64;
    return ((bytes + line - 1) / line | 1) * line;
}

// Bytes of late weights from position to position.
int64_t late_position_stride(const WinogradConvolution &convolution) {
    const int64_t units = std::min(late_units, convolution.units);
    return odd_lines(units * widest_block(convolution) * convolution.lanes * static_cast<int64_t>(sizeof(float)));
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

Positions transformed_layout(const WinogradConvolution &convolution, int64_t tiles, std::byte *data) {
    const int64_t channels = input_channels(convolution), part = part_channels(convolution);
    const int64_t tile = part * window_element(convolution);
    // Strides of many lines would put the tiles of a block into few sets of the cache.
    const int64_t tile_stride = tile < 1024 ? tile : odd_lines(tile);
    const int64_t part_stride = odd_lines(tiles * tile_stride), parts = (channels + part - 1) / part;
    return {data, odd_lines(parts * part_stride), part_stride, tile_stride};
}

Positions product_layout(const WinogradConvolution &convolution, int64_t tiles, std::byte *data) {
    const auto tile_stride = static_cast<int64_t>(sizeof(float)) * widest_block(convolution) * convolution.lanes;
    const int64_t position_stride = odd_lines(tiles * tile_stride);
    return {data, position_stride, position_stride, tile_stride};
}

int64_t transformed_bytes(const WinogradConvolution &convolution, int64_t tiles) {
    return transformed_layout(convolution, tiles, nullptr).position_stride * convolution.positions();
}

int64_t product_bytes(const WinogradConvolution &convolution, int64_t tiles) {
    return product_layout(convolution, tiles, nullptr).position_stride * convolution.positions();
}

int64_t late_weight_bytes(const WinogradConvolution &convolution) {
    return convolution.transforms_late ? late_position_stride(convolution) * convolution.positions() : 0;
}

WinogradSchedule schedule(const WinogradConvolution &convolution, int64_t images, int64_t height, int64_t width,
                          int threads, bool may_share) {
    WinogradSchedule result;
    result.tile_rows = convolution.tiles_along(height);
    result.tile_columns = convolution.tiles_along(width);
    result.tiles = images * result.tile_rows * result.tile_columns;

    // Bytes of a task's positions that a core's second cache holds beside weights.
    constexpr int64_t own_bytes = 640 << 10, product_limit = 304 << 10, shared_bytes = 8 << 20;
    const int64_t per_tile = transformed_bytes(convolution, 64) / 64,
                  product_per_tile = product_bytes(convolution, 64) / 64;
    result.band_rows = images * result.tile_rows;
    if (convolution.transforms_late) {
        const int64_t fitting = shared_bytes / (per_tile * result.tile_columns);
        result.band_rows = std::clamp<int64_t>(fitting, 1, result.band_rows);
    }
    const int64_t weights = convolution.block_weights * convolution.padded_channels * 4;
    const auto blocks = static_cast<int64_t>(convolution.blocks.size());
    constexpr int64_t fewest = 8, most = 56;
    const int64_t own = std::clamp(own_bytes / (per_tile + product_per_tile), fewest, most);
    const int64_t shared = std::clamp(product_limit / product_per_tile, fewest, 2 * most);
    const int64_t tiles = result.band_tiles();
    const auto ranges_of = [&](int64_t each) { return (tiles + each - 1) / each; };

    // What either way reads from beyond the second cache.
    const int64_t own_traffic = ranges_of(own) * weights;
    const int64_t shared_traffic = ranges_of(shared) * weights + (blocks + 1) * tiles * per_tile;
    const bool too_few = ranges_of(own) < 3 * threads;
    const bool share = may_share && tiles * per_tile <= shared_bytes && (too_few || shared_traffic < own_traffic);
    result.whole = convolution.transforms_late || share;
    // So many tasks that no thread waits long for the last one, but no ranges of a few tiles.
    const int64_t wanted = 3 * threads, per_range = result.whole ? blocks : 1;
    const int64_t least_ranges = ranges_of(result.whole ? shared : own);
    const int64_t ranges =
        std::clamp((wanted + per_range - 1) / per_range, least_ranges, std::max(least_ranges, tiles / fewest));
    result.range = ranges_of(ranges);
    return result;
}

void transform_windows(const WinogradConvolution &convolution, const KernelTable &kernels,
                       const Activations *const *inputs, const TileRun &run, const Positions &to) {
    for (const WinogradSource &source : convolution.sources) {
        const Activations &from = *inputs[source.input];
        const int64_t y = run.row * convolution.tile + source.dy, x = run.column * convolution.tile + source.dx;
        WinogradInput row;
        row.tile = convolution.tile;
        const std::byte *pixel = from.pixel(run.image, y, x);
        row.row_stride = from.row_stride;
        row.pixel_stride = from.pixel_stride;
        row.rows = from.height + from.halo - y;
        row.columns = from.width + from.halo - x;
        row.input_is_bf16 = from.bf16;
        row.prefetches = source.input > 0; // a skip connection, which was written long before
        row.tiles = run.tiles;
        row.output_is_bf16 = convolution.bf16_products;
        row.position_stride = to.position_stride;
        row.tile_stride = to.tile_stride;
        const int64_t part = part_channels(convolution), end = source.first_channel + source.channels;
        for (int64_t channel = source.first_channel; channel < end;) {
            const int64_t channels = std::min(end - channel, part - channel % part);
            row.input = pixel + (channel - source.first_channel) * static_cast<int64_t>(from.bf16 ? 2 : 4);
            row.vectors = static_cast<int>(channels / convolution.lanes);
            row.output = to.data + channel / part * to.part_stride + channel % part * window_element(convolution);
            kernels.winograd->input(row);
            channel += channels;
        }
    }
}

void multiply(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
              const WinogradPhase &phase, int64_t tiles, const Positions &from, const Positions &to,
              std::byte *late_weights) {
    const int64_t vector_bytes = int64_t{4} * convolution.lanes;
    const std::byte *weights =
        convolution.weights.data() +
        vector_bytes * (convolution.block_weights * block.first_vector + phase.first_weight * block.vectors);
    WinogradProduct product;
    product.input = from.data;
    product.position_stride = from.position_stride;
    product.tile_stride = from.tile_stride;
    product.weights = weights;
    product.weight_position_stride = convolution.units * block.vectors * vector_bytes;
    product.positions = phase.positions.data();
    product.position_count = static_cast<int>(phase.positions.size());
    product.tiles = tiles;
    product.units = convolution.units;
    product.vectors = block.vectors;
    product.adds = false;
    product.output = reinterpret_cast<float *>(to.data);
    product.output_position_stride = to.position_stride;
    product.output_tile_stride = to.tile_stride;
    product.next = nullptr;
    product.next_bytes = 0;
    if (convolution.transforms_late) {
        product.weights = late_weights;
        product.weight_position_stride = late_position_stride(convolution);
        for (int64_t unit = 0; unit < convolution.units; unit += late_units) {
            const std::byte *taps = weights + unit * taps_of(phase) * block.vectors * vector_bytes;
            product.units = std::min(late_units, convolution.units - unit);
            kernels.winograd->weights({convolution.tile, phase.skipped_row, phase.skipped_column,
                                       reinterpret_cast<const float *>(taps), product.units, block.vectors,
                                       reinterpret_cast<float *>(late_weights), product.weight_position_stride});
            product.input = from.data + unit / late_units * from.part_stride;
            // The taps of the next units, phase or block follow.
            product.next_bytes = product.units * taps_of(phase) * block.vectors * vector_bytes;
            product.next = reinterpret_cast<const char *>(taps) + product.next_bytes;
            kernels.winograd->product_float32(product);
            product.adds = true;
        }
        return;
    }
    (convolution.bf16_products ? kernels.winograd->product_bf16 : kernels.winograd->product_float32)(product);
}

void finish_run(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                const WinogradPhase &phase, const TileRun &run, const Positions &from, const WinogradTarget &target) {
    const int64_t stride = convolution.stride, tile = convolution.tile;
    const int64_t channel = static_cast<int64_t>(block.first_vector) * convolution.lanes;
    const int64_t element = target.bf16 ? sizeof(Bf16) : sizeof(float);
    // The first output pixel, and how many there are in the run's rows and columns.
    const int64_t y = run.row * tile * stride + phase.row, x = run.column * tile * stride + phase.column;
    const auto count = [&](int64_t from_side, int64_t side) { return (side - from_side + stride - 1) / stride; };
    WinogradOutput row;
    row.tile = convolution.tile;
    row.skipped_row = phase.skipped_row;
    row.skipped_column = phase.skipped_column;
    row.input = reinterpret_cast<const float *>(from.data);
    row.position_stride = from.position_stride;
    row.tile_stride = from.tile_stride;
    row.tiles = run.tiles;
    row.vectors = block.vectors;
    row.adds = convolution.adds;
    row.activation = convolution.epilogue.activation;
    row.slope = convolution.epilogue.slope;
    row.output_is_bf16 = target.bf16;
    row.output = target.data + phase.row * target.row_stride + phase.column * target.pixel_stride + channel * element;
    row.row_stride = stride * target.row_stride;
    row.pixel_stride = stride * target.pixel_stride;
    row.rows = count(y, target.height);
    row.columns = count(x, target.width);

    const Epilogue &epilogue = convolution.epilogue;
    const int64_t padded = convolution.padded_channels;
    row.bias_stride = epilogue.border_bias ? padded : 0;
    row.first_column = x == 0;
    for (int64_t i = 0; i < tile; ++i) {
        const int64_t bias_row = epilogue.border_bias ? border_class(y + i * stride, target.height) : 0;
        row.bias[i] = epilogue.bias.floats() + 3 * bias_row * padded + channel;
    }
    kernels.winograd->output(row);
}

} // namespace uf
