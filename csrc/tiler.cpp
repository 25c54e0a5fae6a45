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

TileAxis tiles_of(const Plan &plan, int64_t side, int64_t result) {
    TileAxis axis;
    axis.side = side;
    axis.core = side - 2 * plan.margin;
    axis.result = result;
    return axis;
}

// One tile over everything, padded at the end to a legal size.
TileAxis whole_axis(const Plan &plan, int64_t size) {
    return tiles_of(plan, plan.next_legal(size + 2 * plan.margin), size);
}

TileAxis overlapping_axis(const Plan &plan, int64_t size, int64_t side, int64_t overlap) {
    const int64_t core = side - 2 * plan.margin;
    if (size <= core)
        return whole_axis(plan, size);
    const int64_t step = core - overlap;
    TileAxis axis = tiles_of(plan, side, size);
    axis.overlapping = true;
    axis.count = (size - overlap + step - 1) / step;
    axis.last_origin = axis.advance = size - core;
    axis.parts = axis.count - 1;
    return axis;
}

// Tiles at multiples of the plan's grid, of which only pixels count that are far enough from a cut to know nothing of
// it. Where there is room, at multiples of four times `multiple`: then the 4x4 tiles of Winograd's convolutions in
// floating point fall as in the whole image too, and nearly all pixels come out in the same bits.
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
    const int64_t grid = roomy ? 4 * plan.multiple : plan.grid();
    const int64_t largest_step = (largest_side - lost - (grid - plan.multiple)) / grid * grid;
    if (largest_side <= lost || largest_step == 0)
        refuse("tile ", largest_side, " is too small for exact tiling: this network needs at least ",
               plan.next_legal(lost + 2 * grid - plan.multiple));
    // As many tiles as needed, then as small as they may be for that number.
    const int64_t inner = whole.core - 2 * edge;
    const int64_t most = (inner + largest_step - 1) / largest_step;
    const int64_t step = rounded_up((inner + most - 1) / most, grid);
    const int64_t least_side = plan.next_legal(step + lost);
    const int64_t side = least_side + (whole.side - least_side) % grid;
    TileAxis axis = tiles_of(plan, side, size);
    axis.last_origin = whole.side - side;
    axis.advance = step;
    axis.edge = edge;
    // Those before the last reach as far as this at most, and what they give may be enough.
    const int64_t missing = std::min(axis.last_origin, size - (axis.core - edge));
    axis.count = 1 + rounded_up(missing, step) / step;
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

int64_t TileAxis::origin_of(int64_t tile) const { return std::min(tile * advance / parts, last_origin); }

int64_t TileAxis::end_of(int64_t tile) const {
    return tile + 1 == count ? result : std::min(origin_of(tile) + core - edge, result);
}

TileSpan TileAxis::operator[](int64_t tile) const {
    const int64_t origin = origin_of(tile);
    return {origin, overlapping ? origin : tile == 0 ? 0 : end_of(tile - 1), end_of(tile)};
}

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
        layout.y = tiles_of(plan, height, layout.height);
        layout.x = tiles_of(plan, width, layout.width);
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
        layout.y = layout.x = tiles_of(plan, side, side - 2 * plan.margin);
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
        if (layout.y.count > 1 || layout.x.count > 1)
            layout.kind = Layout::Kind::blended;
        break;
    }
    }
    return layout;
}

void blend_weights(const TileAxis &axis, int64_t overlap, float *weights) {
    const auto ramp = [&](int64_t distance) {
        return overlap == 0 ? 1.0 : std::min(1.0, (static_cast<double>(distance) + 0.5) / static_cast<double>(overlap));
    };
    const auto undivided = [&](const TileSpan &tile, int64_t position) {
        const int64_t within = position - tile.begin;
        const double from_start = tile.origin > 0 ? ramp(within) : 1.0;
        const double from_end = tile.origin < axis.last_origin ? ramp(axis.core - 1 - within) : 1.0;
        return std::min(from_start, from_end);
    };
    for (int64_t number = 0; number < axis.count; ++number, weights += axis.core) {
        const TileSpan tile = axis[number];
        int64_t first = number; // of those that share pixels with this one
        while (first > 0 && axis[first - 1].end > tile.begin)
            --first;
        for (int64_t position = tile.begin; position < tile.end; ++position) {
            double sum = 0.0;
            for (int64_t other = first; other < axis.count && axis[other].begin <= position; ++other)
                if (const TileSpan shares = axis[other]; position < shares.end)
                    sum += undivided(shares, position);
            weights[position - tile.begin] = static_cast<float>(undivided(tile, position) / sum);
        }
    }
}

} // namespace uf
