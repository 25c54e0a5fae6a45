#include "tiler.h"

#include <algorithm>

#include "error.h"
#include "images.h"
#include "message.h"

namespace uf {

namespace {

// Exact tiles are as large as this by default: at a halo of 96 pixels, two thirds of each tile are kept.
constexpr int64_t exact_tile = 1024;

template <class... Parts> [[noreturn]] void refuse(const Parts &...parts) {
    throw Error(UF_ERR_INVALID_ARGUMENT, message(parts...));
}

std::string legal_sizes(const Plan &plan) {
    return message("n >= ", plan.minimum, " and n % ", plan.multiple, " == ", plan.remainder);
}

// The largest legal side up to `most`, or the smallest there is.
int64_t previous_legal(const Plan &plan, int64_t most) {
    const int64_t above = plan.next_legal(most);
    return above == most || above == plan.minimum ? above : above - plan.multiple;
}

int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

TileAxis one_tile(const Plan &plan, int64_t side, int64_t result) {
    return {side, side - 2 * plan.margin, result, {{0, 0, result}}};
}

// One tile over everything, padded at the end to a legal size.
TileAxis whole_axis(const Plan &plan, int64_t size) {
    return one_tile(plan, plan.next_legal(size + 2 * plan.margin), size);
}

TileAxis overlapping_axis(const Plan &plan, int64_t size, int64_t side, int64_t overlap) {
    const int64_t core = side - 2 * plan.margin;
    if (size <= core)
        return whole_axis(plan, size);
    const int64_t step = core - overlap;
    const int64_t count = (size - overlap + step - 1) / step;
    TileAxis axis{side, core, size, {}};
    for (int64_t i = 0; i < count; ++i) {
        const int64_t origin = i * (size - core) / (count - 1);
        axis.tiles.push_back({origin, origin, origin + core});
    }
    return axis;
}

// Tiles at multiples of `multiple`, so that poolings fall as in the whole image, of which only pixels count that are
// far enough from a cut to know nothing of it.  Where there is room, at multiples of four times that: then the 4x4
// tiles of Winograd's convolutions fall as in the whole image too, and nearly all pixels come out in the same bits.
TileAxis exact_axis(const Plan &plan, int64_t size, int64_t largest_side) {
    const TileAxis whole = whole_axis(plan, size);
    if (whole.side <= largest_side)
        return whole;
    if (plan.halo < 0)
        throw Error(UF_ERR_UNSUPPORTED, message("this network cannot be tiled exactly, and an image side of ", size,
                                                " pixels does not fit into one tile of ", largest_side,
                                                "; use tiling fast or none, or a larger tile"));
    const int64_t edge = std::max(plan.halo - plan.margin, 0);
    const int64_t lost = 2 * edge + 2 * plan.margin; // of each tile
    // Tiles of one size begin at the steps, and the last one ends with the image; so its size may have to be larger by
    // what the image is beyond a whole number of steps.
    const bool roomy = largest_side - lost >= 8 * plan.multiple;
    const int64_t grid = roomy ? 4 * plan.multiple : plan.multiple;
    const int64_t largest_step = (largest_side - lost - (grid - plan.multiple)) / grid * grid;
    if (largest_side <= lost || largest_step == 0)
        refuse("tile ", largest_side, " is too small for exact tiling: this network needs at least ",
               plan.next_legal(lost + plan.multiple));
    // As many tiles as needed, then as small as they may be for that number.
    const int64_t inner = whole.core - 2 * edge;
    const int64_t count = (inner + largest_step - 1) / largest_step;
    const int64_t step = rounded_up((inner + count - 1) / count, grid);
    const int64_t least_side = plan.next_legal(step + lost);
    const int64_t side = least_side + (whole.side - least_side) % grid;
    TileAxis axis{side, side - 2 * plan.margin, size, {}};
    int64_t done = 0;
    for (int64_t i = 0; i < count && done < size; ++i) {
        const int64_t origin = std::min(i * step, whole.side - side);
        const bool last = origin + side == whole.side;
        const int64_t end = last ? size : std::min(origin + axis.core - edge, size);
        axis.tiles.push_back({origin, done, end});
        done = end;
    }
    return axis;
}

int64_t tile_side(const Plan &plan, const RunOptions &options, int64_t otherwise) {
    if (options.tile == 0)
        return otherwise;
    if (!plan.legal(options.tile))
        refuse("tile is ", options.tile, ", this network takes ", legal_sizes(plan), ", such as ",
               plan.next_legal(options.tile));
    return options.tile;
}

} // namespace

RunOptions check_run_options(const uf_run_options *options, const Plan &plan) {
    RunOptions result;
    result.threshold = plan.threshold;
    if (options == nullptr)
        return result;
    if (options->tiling < UF_TILING_FAST || options->tiling > UF_TILING_NONE)
        refuse("options.tiling is ", options->tiling,
               ", accepted are UF_TILING_FAST (0), UF_TILING_EXACT (1), UF_TILING_RESIZE (2), UF_TILING_NONE (3)");
    if (options->tile < 0 || options->tile > largest_image_side)
        refuse("options.tile is ", options->tile, ", accepted are 0 (default) to ", largest_image_side);
    if (options->overlap < 0)
        refuse("options.overlap is ", options->overlap, ", expected at least 1 (0: an eighth of the tile)");
    if (options->threshold != 0.0F) {
        if (!(options->threshold > 0.0F && options->threshold < 1.0F))
            refuse("options.threshold is ", options->threshold, ", accepted are values between 0 and 1 (0: the file's ",
                   plan.threshold, ")");
        result.threshold = options->threshold;
    }
    result.tiling = static_cast<uf_tiling>(options->tiling);
    result.tile = options->tile;
    result.overlap = options->overlap;
    return result;
}

Layout make_layout(const Plan &plan, int64_t height, int64_t width, const RunOptions &options) {
    for (const auto &[name, side] : {std::pair("height", height), std::pair("width", width)})
        if (side < 1 || side > largest_image_side)
            refuse(name, " is ", side, ", accepted are 1 to ", largest_image_side);
    Layout layout;
    layout.mirror = plan.margin;
    layout.height = height;
    layout.width = width;
    switch (options.tiling) {
    case UF_TILING_NONE:
        if (!plan.legal(height) || !plan.legal(width))
            refuse("an image of ", height, " x ", width,
                   " (height x width) does not fit this network in one pass, "
                   "which takes ",
                   legal_sizes(plan), "; use another tiling");
        layout.mirror = 0;
        layout.height = height - 2 * plan.margin;
        layout.width = width - 2 * plan.margin;
        layout.y = one_tile(plan, height, layout.height);
        layout.x = one_tile(plan, width, layout.width);
        break;
    case UF_TILING_EXACT: {
        const int64_t side =
            tile_side(plan, options, previous_legal(plan, std::max<int64_t>(exact_tile, 4 * plan.halo)));
        layout.y = exact_axis(plan, height, side);
        layout.x = exact_axis(plan, width, side);
        break;
    }
    case UF_TILING_RESIZE: {
        const int64_t side = tile_side(plan, options, plan.tile);
        layout.kind = Layout::Kind::resized;
        layout.y = layout.x = one_tile(plan, side, side - 2 * plan.margin);
        break;
    }
    case UF_TILING_FAST: {
        const int64_t side = tile_side(plan, options, plan.tile);
        const int64_t core = side - 2 * plan.margin;
        layout.overlap = options.overlap != 0 ? options.overlap : core / 8;
        if (layout.overlap > core / 2)
            refuse("options.overlap is ", options.overlap, ", at most half of the ", core,
                   " pixels that a tile gives are allowed");
        layout.y = overlapping_axis(plan, height, side, layout.overlap);
        layout.x = overlapping_axis(plan, width, side, layout.overlap);
        if (layout.y.tiles.size() > 1 || layout.x.tiles.size() > 1)
            layout.kind = Layout::Kind::blended;
        break;
    }
    }
    return layout;
}

std::vector<std::vector<float>> blend_weights(const TileAxis &axis, int64_t overlap) {
    const int64_t last_start = axis.result - axis.core;
    const auto ramp = [&](int64_t distance) {
        return overlap == 0 ? 1.0 : std::min(1.0, (static_cast<double>(distance) + 0.5) / static_cast<double>(overlap));
    };
    std::vector<double> sums(static_cast<size_t>(axis.result), 0.0);
    std::vector<std::vector<double>> raw;
    for (const TileSpan &tile : axis.tiles) {
        std::vector<double> &weights = raw.emplace_back();
        for (int64_t i = 0; i < tile.end - tile.begin; ++i) {
            const double from_start = tile.origin > 0 ? ramp(i) : 1.0;
            const double from_end = tile.origin < last_start ? ramp(axis.core - 1 - i) : 1.0;
            weights.push_back(std::min(from_start, from_end));
            sums[static_cast<size_t>(tile.begin + i)] += weights.back();
        }
    }
    std::vector<std::vector<float>> result;
    for (size_t t = 0; t < raw.size(); ++t) {
        std::vector<float> &weights = result.emplace_back();
        for (size_t i = 0; i < raw[t].size(); ++i)
            weights.push_back(static_cast<float>(raw[t][i] / sums[static_cast<size_t>(axis.tiles[t].begin) + i]));
    }
    return result;
}

} // namespace uf
