#include "winograd.h"

#include <algorithm>

namespace uf {
namespace {

// Units whose weights are transformed together, for two rows of positions (48 KB with AVX2, 192 KB with AVX-512): sums
// are stored and loaded again once for so many multiply-adds.  Taps are read once per pair of rows, from the second
// cache, which holds those of a group of units beside those that come next.
constexpr int64_t late_units = 64, late_group = 256, late_group_bytes = 288 << 10;

int widest_block(const WinogradConvolution &convolution) {
    int vectors = 0;
    for (const ChannelBlock &block : convolution.blocks)
        vectors = std::max(vectors, block.vectors);
    return vectors;
}

// Of a tile's products, or a unit's weights at a position, of the widest block.
int64_t block_bytes(const WinogradConvolution &convolution) {
    return static_cast<int64_t>(widest_block(convolution)) * convolution.lanes * static_cast<int64_t>(sizeof(float));
}

int64_t window_element(const WinogradConvolution &convolution) {
    return convolution.products == Products::float32 ? 4 : 2;
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

// Units whose products are made, for all rows of positions, before those of others are added.
int64_t units_together(const WinogradConvolution &convolution) {
    if (!convolution.transforms_late)
        return convolution.units;
    const int64_t fitting = late_group_bytes / (9 * block_bytes(convolution)) / late_units * late_units;
    return std::min({late_group, fitting, convolution.units});
}

// Positions at which a task has products at a time.
int64_t product_positions(const WinogradConvolution &convolution) {
    const int64_t side = convolution.window();
    if (units_together(convolution) < convolution.units)
        return side * side;
    return convolution.transforms_late ? 2 * side : side;
}

// Bytes of late weights from position to position.
int64_t late_position_stride(const WinogradConvolution &convolution) {
    const int64_t units = std::min(late_units, convolution.units);
    return odd_lines(units * block_bytes(convolution));
}

} // namespace

Positions window_layout(const WinogradConvolution &convolution, int64_t tiles, std::byte *data) {
    const int64_t channels = input_channels(convolution), part = part_channels(convolution);
    const int64_t tile = part * window_element(convolution);
    // Strides of many lines would put the tiles of a block into few sets of the cache.
    const int64_t tile_stride = tile < 1024 ? tile : odd_lines(tile);
    const int64_t part_stride = odd_lines(tiles * tile_stride), parts = (channels + part - 1) / part;
    return {data, odd_lines(parts * part_stride), part_stride, tile_stride};
}

int64_t window_bytes(const WinogradConvolution &convolution, int64_t tiles) {
    const int64_t side = convolution.window();
    return window_layout(convolution, tiles, nullptr).position_stride * side * side;
}

WinogradMemory::WinogradMemory(const WinogradConvolution &convolution, const WinogradSchedule &schedule,
                               std::byte *data) {
    const int64_t side = convolution.window(), tile = convolution.tile, tiles = schedule.range;
    const int64_t float_bytes = sizeof(float), block = block_bytes(convolution);
    const auto take = [&](int64_t size) {
        std::byte *const begin = data == nullptr ? nullptr : data + bytes;
        bytes += size;
        return begin;
    };
    const auto take_lines = [&](int64_t columns, int64_t column_stride) {
        const int64_t line_stride = odd_lines(columns * column_stride);
        return Lines{take(side * line_stride), line_stride, column_stride, side * line_stride};
    };
    const int64_t runs = tiles / schedule.tile_columns + 2; // at most
    input = take_lines(tile * tiles + 2 * runs, input_channels(convolution) * float_bytes);
    if (!schedule.whole) {
        windows = window_layout(convolution, schedule.portion, nullptr);
        windows.data = take(side * windows.position_stride);
    }
    if (convolution.transforms_late)
        late_weights = take(2 * side * late_position_stride(convolution));
    const int64_t position_stride = odd_lines(schedule.portion * block);
    products = {take(product_positions(convolution) * position_stride), position_stride, position_stride, block};
    output = take_lines(tile * tiles, block);
    if (!schedule.whole)
        take(output.bytes * (static_cast<int64_t>(convolution.blocks.size() * convolution.phases.size()) - 1));
}

WinogradSchedule schedule(const WinogradConvolution &convolution, int64_t images, int64_t height, int64_t width,
                          int threads, bool may_share) {
    WinogradSchedule result;
    result.tile_rows = convolution.tiles_along(height);
    result.tile_columns = convolution.tiles_along(width);
    result.tiles = images * result.tile_rows * result.tile_columns;

    // Bytes of a task's lines, windows and products that a core's second cache holds beside weights.
    constexpr int64_t own_bytes = 384 << 10, shared_bytes = 8 << 20;
    const int64_t side = convolution.window(), lines = side * convolution.tile, float_bytes = sizeof(float);
    const int64_t inputs = input_channels(convolution) * float_bytes, block = block_bytes(convolution);
    // Of 64 channels at a time (an Ice Lake, whose second cache has 1.25 MB) 29 tiles would fit the smaller limit, and
    // 85 take 0.94 of the time of `relunet64`: late weights are transformed once for so many.
    const int64_t product_limit = (block > 128 ? 1280 : 448) << 10;
    const auto blocks = static_cast<int64_t>(convolution.blocks.size()),
               phases = static_cast<int64_t>(convolution.phases.size());
    const int64_t per_tile = window_bytes(convolution, 64) / 64;
    const int64_t own_per_tile = (lines + side) * inputs + side * block + lines * block * blocks * phases;
    const int64_t product_per_tile = product_positions(convolution) * block + lines * block;
    result.band_rows = images * result.tile_rows;
    if (convolution.transforms_late) {
        const int64_t fitting = shared_bytes / (per_tile * result.tile_columns);
        result.band_rows = std::clamp<int64_t>(fitting, 1, result.band_rows);
    }
    const int64_t weights = convolution.block_weights * convolution.padded_channels * 4;
    constexpr int64_t fewest = 8, most = 64;
    // Weights that no cache beside the core holds are read once per range, so that smaller ones cost more than windows
    // in the second cache save (`relunet64`, AVX2, lower deciles: 16 instead of 8 tiles take 0.98 of the time, 32 take
    // 0.99 of that).
    constexpr int64_t fewest_of_own = 32;
    const int64_t own = std::clamp(own_bytes / own_per_tile, fewest_of_own, most);
    const int64_t shared = std::clamp(product_limit / product_per_tile, fewest, 2 * most);
    const int64_t tiles = result.band_tiles();
    const auto ranges_of = [&](int64_t each) { return (tiles + each - 1) / each; };

    // What either way reads from beyond the second cache.
    const int64_t own_traffic = ranges_of(own) * weights;
    const int64_t shared_traffic = ranges_of(shared) * weights + (blocks + 1) * tiles * per_tile;
    const bool too_few = ranges_of(own) < 3 * threads;
    const bool share = may_share && tiles * per_tile <= shared_bytes && (too_few || shared_traffic < own_traffic);
    result.whole = convolution.transforms_late || share;
    // So many tasks that no thread waits long for the last one, but no ranges of a few tiles; and no more than threads
    // where each range transforms its weights anew (`relunet16`, Ice Lake, two threads: 0.93 of the time of thrice).
    const int64_t wanted = (convolution.transforms_late ? 1 : 3) * threads, per_range = result.whole ? blocks : 1;
    const int64_t least_ranges = ranges_of(result.whole ? shared : own);
    const int64_t ranges =
        std::clamp((wanted + per_range - 1) / per_range, least_ranges, std::max(least_ranges, tiles / fewest));
    result.range = ranges_of(ranges);
    // Whole rows of tiles, or parts of one, not to begin runs of a few tiles: 0.99 of the time of ranges that end
    // anywhere.
    const int64_t row = result.tile_columns, parts = (row + result.range - 1) / result.range;
    if (!result.whole)
        result.range = parts == 1 ? result.range / row * row : (row + parts - 1) / parts;

    // Windows and products of a row of positions that the first cache holds, beside weights of few units: with 16 units
    // transforms along rows and their way back take 0.65 of the time of a range's that does not fit (Ice Lake).  Where
    // weights fill the first cache there is nothing to keep in it.
    constexpr int64_t first_bytes = 26 << 10;
    const int64_t at_row = side * (input_channels(convolution) * window_element(convolution) + block);
    const int64_t most_portion = first_bytes / at_row, portions = (result.range + most_portion - 1) / most_portion;
    result.portion = result.whole || most_portion < 12 ? result.range : (result.range + portions - 1) / portions;
    return result;
}

namespace {

// Windows -> lines, for the tiles of a run.
void transform_columns(const WinogradConvolution &convolution, const KernelTable &kernels,
                       const Activations *const *inputs, const TileRun &run, const Lines &to) {
    for (const WinogradSource &source : convolution.sources) {
        const Activations &from = *inputs[source.input];
        const int64_t y = run.row * convolution.tile + source.dy, x = run.column * convolution.tile + source.dx;
        WinogradInputColumns columns;
        columns.tile = convolution.tile;
        columns.input = from.pixel(run.image, y, x);
        columns.row_stride = from.row_stride;
        columns.pixel_stride = from.pixel_stride;
        columns.rows = from.height + from.halo - y;
        columns.columns = from.width + from.halo - x;
        columns.input_is_bf16 = from.bf16;
        columns.prefetches = source.input > 0; // a skip connection, which was written long before
        columns.tiles = run.tiles;
        columns.vectors = source.channels / convolution.lanes;
        columns.output = reinterpret_cast<float *>(to.data) + source.first_channel;
        columns.line_stride = to.line_stride;
        columns.column_stride = to.column_stride;
        kernels.winograd->input_columns(columns);
    }
}

// The first column of a run among the lines of its range: each run has two more columns than its tiles.
int64_t first_column(const WinogradConvolution &convolution, const TileRun &run) {
    return convolution.tile * run.first + 2 * run.number;
}

// A line -> a row of positions, for the tiles of a run.
void transform_row(const WinogradConvolution &convolution, const KernelTable &kernels, int64_t tiles, const Lines &from,
                   const Positions &to) {
    WinogradInputRow row;
    row.tile = convolution.tile;
    row.column_stride = from.column_stride;
    row.tiles = tiles;
    row.products = convolution.products;
    row.position_stride = to.position_stride;
    row.tile_stride = to.tile_stride;
    const int64_t part = part_channels(convolution), end = input_channels(convolution);
    for (int64_t channel = 0; channel < end; channel += part) {
        row.input = reinterpret_cast<const float *>(from.data) + channel;
        row.vectors = static_cast<int>(std::min(part, end - channel) / convolution.lanes);
        row.output = to.data + channel / part * to.part_stride;
        kernels.winograd->input_row(row);
    }
}

// Weights of a channel block and phase.
const std::byte *weights_of(const WinogradConvolution &convolution, const ChannelBlock &block,
                            const WinogradPhase &phase) {
    return convolution.weights.data() +
           4 * convolution.lanes *
               (convolution.block_weights * block.first_vector + phase.first_weight * block.vectors);
}

// A row of positions of a channel block and phase, from windows to products, which both begin at that row; without its
// weights and what is read next.
WinogradProduct product_of(const WinogradConvolution &convolution, const ChannelBlock &block,
                           const WinogradPhase &phase, int64_t tiles, const Positions &windows,
                           const Positions &products) {
    WinogradProduct product;
    product.input = windows.data;
    product.position_stride = windows.position_stride;
    product.tile_stride = windows.tile_stride;
    product.positions = phase.columns.data();
    product.position_count = static_cast<int>(phase.columns.size());
    product.tiles = tiles;
    product.units = convolution.units;
    product.vectors = block.vectors;
    product.adds = false;
    product.output = reinterpret_cast<float *>(products.data);
    product.output_position_stride = products.position_stride;
    product.output_tile_stride = products.tile_stride;
    return product;
}

decltype(WinogradKernels::product_float32) product_function(Products products, const KernelTable &kernels) {
    switch (products) {
    case Products::bf16:
        return kernels.winograd->product_bf16;
    case Products::fp16:
        return kernels.winograd->product_fp16;
    default:
        return kernels.winograd->product_float32;
    }
}

void multiply_row(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                  const WinogradPhase &phase, int row, int64_t tiles, const Positions &windows,
                  const Positions &products) {
    WinogradProduct product = product_of(convolution, block, phase, tiles, windows, products);
    product.weight_position_stride = convolution.units * block.vectors * convolution.lanes * int64_t{4};
    product.weights = weights_of(convolution, block, phase) +
                      phase.rows_before(row) * product.position_count * product.weight_position_stride;
    // The weights of the next position: where a layer has 256 units they come from the third cache.
    product.next = static_cast<const char *>(product.weights) + product.weight_position_stride;
    product.next_bytes = product.position_count * product.weight_position_stride;
    product_function(convolution.products, kernels)(product);
}

// The same for a pair of rows and units [begin, end), whose weights are transformed for the purpose; what others gave
// is added to.
void multiply_rows_late(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                        const WinogradPhase &phase, const std::array<int, 2> &rows, int64_t begin, int64_t end,
                        int64_t tiles, const Positions &windows, std::byte *late_weights,
                        const std::array<Positions, 2> &products) {
    const int64_t unit_bytes = phase.taps() * block.vectors * convolution.lanes * int64_t{4};
    const int64_t all_rows = phase.rows_before(convolution.window()), stride = late_position_stride(convolution);
    const int side = convolution.window();
    const std::byte *taps = weights_of(convolution, block, phase);
    const auto weights_at = [&](int i) {
        return phase.skips(rows[i]) ? nullptr : reinterpret_cast<float *>(late_weights + i * side * stride);
    };
    for (int64_t unit = begin; unit < end; unit += late_units) {
        const int64_t units = std::min(late_units, end - unit);
        kernels.winograd->weights({convolution.tile,
                                   rows[0],
                                   phase.skipped_row,
                                   phase.skipped_column,
                                   reinterpret_cast<const float *>(taps + unit * unit_bytes),
                                   units,
                                   block.vectors,
                                   {weights_at(0), weights_at(1)},
                                   stride});
        for (int i = 0; i < 2; ++i) {
            if (phase.skips(rows[i]))
                continue;
            WinogradProduct product =
                product_of(convolution, block, phase, tiles, windows.from(rows[i] * side, 0), products[i]);
            product.weights = weights_at(i);
            product.weight_position_stride = stride;
            product.input = static_cast<const std::byte *>(product.input) + unit / late_units * windows.part_stride;
            product.units = units;
            product.adds = unit > 0;
            // The taps of the next units, phase or block follow: a part of them with each product.
            const int64_t done = phase.rows_before(rows[i]) * (end - begin) + unit - begin;
            product.next = reinterpret_cast<const char *>(taps + end * unit_bytes + done * unit_bytes / all_rows);
            product.next_bytes = units * unit_bytes / all_rows;
            kernels.winograd->product_float32(product);
        }
    }
}

// A row of positions -> a line.
void gather_row(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                const WinogradPhase &phase, int64_t tiles, const Positions &from, const Lines &to) {
    WinogradOutputRow row;
    row.tile = convolution.tile;
    row.skipped_column = phase.skipped_column;
    row.input = reinterpret_cast<const float *>(from.data);
    row.position_stride = from.position_stride;
    row.tile_stride = from.tile_stride;
    row.tiles = tiles;
    row.vectors = block.vectors;
    row.output = reinterpret_cast<float *>(to.data);
    row.column_stride = to.column_stride;
    kernels.winograd->output_row(row);
}

} // namespace

void transform_windows(const WinogradConvolution &convolution, const KernelTable &kernels,
                       const WinogradSchedule &schedule, const Activations *const *inputs, int64_t begin, int64_t end,
                       const WinogradMemory &memory, const Positions &to) {
    for_each_run(schedule, begin, end, [&](const TileRun &run) {
        transform_columns(convolution, kernels, inputs, run, memory.input);
        for (int row = 0; row < convolution.window(); ++row) {
            transform_row(convolution, kernels, run.tiles, memory.input.from(row, 0),
                          to.from(row * convolution.window(), run.first));
        }
    });
}

void convolve_windows(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                      const WinogradPhase &phase, int64_t tiles, const Positions &windows,
                      const WinogradMemory &memory) {
    const int64_t units = convolution.units, together = units_together(convolution);
    const int side = convolution.window();
    const bool late = convolution.transforms_late;
    for (int64_t begin = 0; begin < units; begin += together) {
        const int64_t end = std::min(begin + together, units);
        for (int pair = 0; pair < side / 2; ++pair) {
            const std::array<int, 2> rows = convolution.row_pair(pair);
            std::array<Positions, 2> products;
            for (int i = 0; i < 2; ++i)
                products[i] = memory.products.from(together < units ? rows[i] * side : late ? i * side : 0, 0);
            if (late) {
                multiply_rows_late(convolution, kernels, block, phase, rows, begin, end, tiles, windows,
                                   memory.late_weights, products);
            }
            for (int i = 0; i < 2; ++i) {
                const int row = rows[i];
                if (phase.skips(row))
                    continue;
                if (!late)
                    multiply_row(convolution, kernels, block, phase, row, tiles, windows.from(row * side, 0),
                                 products[i]);
                if (end == units)
                    gather_row(convolution, kernels, block, phase, tiles, products[i], memory.output.from(row, 0));
            }
        }
    }
}

void convolve_range(const WinogradConvolution &convolution, const KernelTable &kernels,
                    const WinogradSchedule &schedule, const Activations *const *inputs, int64_t begin, int64_t end,
                    const WinogradMemory &memory) {
    for_each_run(schedule, begin, end, [&](const TileRun &run) {
        transform_columns(convolution, kernels, inputs, run, memory.input.from(0, first_column(convolution, run)));
    });
    const auto portion_of = [&](int row, int64_t first, int64_t last) {
        for_each_run(schedule, first, last, [&](TileRun run) {
            run.number += first / schedule.tile_columns - begin / schedule.tile_columns;
            const int64_t column = first_column(convolution, run) + convolution.tile * (first - begin);
            transform_row(convolution, kernels, run.tiles, memory.input.from(row, column),
                          memory.windows.from(0, run.first));
        });
        Lines lines = memory.output;
        for (const ChannelBlock &block : convolution.blocks) {
            for (const WinogradPhase &phase : convolution.phases) {
                if (!phase.skips(row)) {
                    multiply_row(convolution, kernels, block, phase, row, last - first, memory.windows,
                                 memory.products);
                    gather_row(convolution, kernels, block, phase, last - first, memory.products,
                               lines.from(row, convolution.tile * (first - begin)));
                }
                lines.data += lines.bytes;
            }
        }
    };
    for (int row = 0; row < convolution.window(); ++row) {
        for (int64_t first = begin; first < end; first += schedule.portion)
            portion_of(row, first, std::min(first + schedule.portion, end));
    }
}

void finish_run(const WinogradConvolution &convolution, const KernelTable &kernels, const ChannelBlock &block,
                const WinogradPhase &phase, const TileRun &run, const Lines &from, const WinogradTarget &target) {
    const int64_t stride = convolution.stride, tile = convolution.tile;
    const int64_t channel = static_cast<int64_t>(block.first_vector) * convolution.lanes;
    const int64_t element = target.bf16 ? sizeof(Bf16) : sizeof(float);
    // The first output pixel, and how many there are from there on.
    const int64_t y = run.row * tile * stride + phase.row, x = run.column * tile * stride + phase.column;
    const auto count = [&](int64_t from_side, int64_t side) { return (side - from_side + stride - 1) / stride; };
    const Lines lines = from.from(0, run.first * tile);
    WinogradOutputColumns columns;
    columns.tile = convolution.tile;
    columns.skipped_row = phase.skipped_row;
    columns.input = reinterpret_cast<const float *>(lines.data);
    columns.line_stride = lines.line_stride;
    columns.column_stride = lines.column_stride;
    columns.vectors = block.vectors;
    columns.adds = convolution.adds;
    columns.activation = convolution.epilogue.activation;
    columns.slope = convolution.epilogue.slope;
    columns.output_is_bf16 = target.bf16;
    columns.output =
        target.data + phase.row * target.row_stride + phase.column * target.pixel_stride + channel * element;
    columns.row_stride = stride * target.row_stride;
    columns.pixel_stride = stride * target.pixel_stride;
    columns.rows = count(y, target.height);
    columns.columns = std::min(count(x, target.width), run.tiles * tile);

    const Epilogue &epilogue = convolution.epilogue;
    const int64_t padded = convolution.padded_channels;
    columns.bias_stride = epilogue.border_bias ? padded : 0;
    columns.first_column = x == 0;
    columns.last_column = count(x, target.width) <= run.tiles * tile;
    for (int64_t i = 0; i < tile; ++i) {
        const int64_t bias_row = epilogue.border_bias ? border_class(y + i * stride, target.height) : 0;
        columns.bias[i] = epilogue.bias.floats() + 3 * bias_row * padded + channel;
    }
    kernels.winograd->output_columns(columns);
}

} // namespace uf
