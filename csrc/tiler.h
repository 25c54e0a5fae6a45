// Which windows of an image the network sees, and which pixels of the result each of them gives.  Geometry only.
//
// Along an axis, a tile sees `side` pixels from `origin` and computes `core` = side - 2 * margin of the result, from
// result pixel `origin`.  Origins are in a mirrored image: position p is the image's pixel p - mirror.
#pragma once

#include <cstdint>

#include "plan.h"
#include "unet_fast.h"

namespace uf {

// uf_run_options with defaults filled in where they do not depend on the image.
struct RunOptions {
    uf_tiling tiling = UF_TILING_FAST;
    int tile = 0, overlap = 0; // 0: default
    float threshold = 0.5F;
};

// Throws UF_ERR_INVALID_ARGUMENT for values that unet_fast.h does not allow.
RunOptions check_run_options(const uf_run_options *options, const Plan &plan);

struct TileSpan {
    int64_t origin = 0;
    int64_t begin = 0, end = 0; // result pixels that are taken from this tile
};

// Tiles of one size along an axis.  They follow from a few numbers, so that a layout allocates nothing.
struct TileAxis {
    int64_t side = 0, core = 0;
    int64_t result = 0;      // pixels of the result (of the small image, if resized)
    int64_t count = 1;       // of tiles
    int64_t last_origin = 0; // that of tile i is i * advance / parts, and this at most
    int64_t advance = 0, parts = 1;
    int64_t edge = 0;         // pixels that a tile leaves to the next one
    bool overlapping = false; // else a tile gives the pixels from where the one before ends

    TileSpan operator[](int64_t tile) const;

  private:
    int64_t origin_of(int64_t tile) const;
    int64_t end_of(int64_t tile) const;
};

struct Layout {
    enum class Kind {
        abutting, // each result pixel comes from one tile; one tile is the common case
        blended,  // tiles overlap; their probabilities are mixed with `blend_weights`
        resized   // one tile, on an image that was resized to y.result x x.result
    };
    Kind kind = Kind::abutting;
    int64_t mirror = 0;
    int64_t overlap = 0;           // of blended tiles
    int64_t height = 0, width = 0; // of the result that the caller gets
    TileAxis y, x;
};

// Throws UF_ERR_INVALID_ARGUMENT where size and options do not fit the network, UF_ERR_UNSUPPORTED where exact tiles
// are impossible.
Layout make_layout(const Plan &plan, int64_t height, int64_t width, const RunOptions &options);

// For each tile of an axis, the weight of each pixel of its core: rising over `overlap` pixels from a side with a
// neighbour, 1 inside, and for each pixel divided by the sum over the tiles that have it.  Writes `core` weights for
// each tile, those beyond the result left out.
void blend_weights(const TileAxis &axis, int64_t overlap, float *weights);

} // namespace uf
