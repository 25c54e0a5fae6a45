#include "tiled_run.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>

#include "error.h"
#include "host_copies.h"
#include "mirrored_images.h"

namespace uf {

namespace {

// Several small images go through one pass; more pixels than this gain nothing and only take memory.
constexpr int64_t most_pass_pixels = int64_t{1} << 20;
constexpr int64_t most_pass_images = 8;

// How many of `items` windows go through one pass: a power of two, so that few shapes of context are in use.
int pass_count(int64_t items, const Layout &layout) {
    const int64_t most = std::clamp<int64_t>(most_pass_pixels / (layout.y.side * layout.x.side), 1, most_pass_images);
    int64_t count = 1;
    while (count < items && count * 2 <= most)
        count *= 2;
    return static_cast<int>(count);
}

PassShape pass_shape(int64_t items, const Layout &layout) {
    return {pass_count(items, layout), static_cast<int>(layout.y.side), static_cast<int>(layout.x.side)};
}

// Hands the windows of a layout to a context: straight from the image where they lie inside it, else by mirrored
// copies; of a window in host memory, of the whole image in device memory.
class WindowReader {
  public:
    // All must outlive it, and it the passes.
    WindowReader(const Executor &executor, const Layout &layout, const ImageBatch &images)
        : layout_(layout), images_(images), mirror_(layout.mirror),
          bytes_(static_cast<size_t>(layout.y.side * layout.x.side * images.channels) *
                 pixel_bytes(images.first.type)) {
        const int64_t rows = seen(layout.y), columns = seen(layout.x);
        if (!images.first.on_device || (mirror_ == 0 && rows <= images.height && columns <= images.width))
            return;
        if (MirroredImages::possible(images)) {
            images_ = mirrored_.emplace(executor, images, mirror_, rows, columns).batch();
            mirror_ = 0;
        } else {
            images_ = on_host_.emplace(executor, images).batch();
        }
    }

    // Makes the window of these tiles the pass's image number `slot`.
    void read(Workspace &workspace, size_t slot, int index, const TileSpan &y, const TileSpan &x,
              const PixelTransform &transform) const {
        const int64_t top = y.origin - mirror_, left = x.origin - mirror_;
        ImageView view = images_[index];
        if (top >= 0 && left >= 0 && top + layout_.y.side <= images_.height && left + layout_.x.side <= images_.width) {
            view.data += top * view.row_stride + left * view.pixel_stride;
        } else {
            workspace.pixels.resize(bytes_ * workspace.images.size());
            std::byte *copy = workspace.pixels.data() + slot * bytes_;
            copy_mirrored(images_, index, top, left, layout_.y.side, layout_.x.side, copy);
            view = tight_view(copy, view.type, layout_.x.side, images_.channels);
        }
        workspace.images[slot] = view;
        workspace.transforms[slot] = transform;
    }

  private:
    // Pixels of the mirrored image that the tiles of an axis see; the last tile begins last.
    static int64_t seen(const TileAxis &axis) { return axis[axis.count - 1].origin + axis.side; }

    const Layout &layout_;
    ImageBatch images_;
    int64_t mirror_;     // of the layout, less what `images_` already hold
    const size_t bytes_; // of one window
    std::optional<MirroredImages> mirrored_;
    std::optional<HostImages> on_host_;
};

// Passes of one shape, two by turns where host work and computing can overlap: while one computes, the host fills the
// next and collects the one before.  One by one where the next writes over what the one before has written.
class Passes {
  public:
    Passes(const Executor &executor, ContextPool &contexts, const PassShape &shape, int64_t passes,
           bool one_by_one = false)
        : contexts_(contexts), passes_(passes) {
        const int64_t most = one_by_one ? 1 : most_lanes;
        const int64_t wanted = std::min<int64_t>({executor.overlapping_passes(), passes, most});
        for (; lanes_ < wanted; ++lanes_)
            try {
                workspaces_[lanes_] = contexts_.take(shape);
            } catch (const Error &error) {
                if (lanes_ == 0 || error.status() != UF_ERR_OUT_OF_MEMORY)
                    throw;
                break; // the second only saves time
            }
    }

    // start(pass, workspace) fills the workspace and calls `begin`, collect(pass, workspace) takes the results; both in
    // the order of passes.  Where one of them throws, the contexts are not used again.
    template <class Start, class Collect> void run(const Start &start, const Collect &collect) {
        const auto of = [&](int64_t pass) -> Workspace & { return *workspaces_[pass % lanes_]; };
        for (int64_t pass = 0; pass < passes_ + lanes_ - 1; ++pass) {
            if (pass < passes_)
                start(pass, of(pass));
            if (const int64_t before = pass + 1 - lanes_; before >= 0) {
                if (lanes_ > 1)
                    of(before).context->finish_pass();
                collect(before, of(before));
            }
        }
        for (int64_t lane = 0; lane < lanes_; ++lane)
            contexts_.give_back(std::move(workspaces_[lane]));
    }

    // The first `count` images of the workspace.
    void begin(Workspace &workspace, int64_t count, float logit_threshold) const {
        Context &context = *workspace.context;
        if (lanes_ > 1)
            context.start_pass(workspace.images.data(), workspace.transforms.data(), static_cast<int>(count),
                               logit_threshold, workspace.outputs.data());
        else
            context.run(workspace.images.data(), workspace.transforms.data(), static_cast<int>(count), logit_threshold,
                        workspace.outputs.data(), nullptr);
    }

    // For what lasts as long as all of the passes; a pass may use the memory of its own workspace otherwise.
    Workspace &first() { return *workspaces_[0]; }

  private:
    static constexpr int most_lanes = 2;
    ContextPool &contexts_;
    const int64_t passes_;
    std::array<std::unique_ptr<Workspace>, most_lanes> workspaces_;
    int64_t lanes_ = 0;
};

} // namespace

void TiledRun::run(const Layout &layout, const ImageBatch &images, float threshold, const OutputBatch &outputs) const {
    if (!images.first.on_device)
        require_finite(images);
    switch (layout.kind) {
    case Layout::Kind::abutting:
        run_abutting(layout, images, threshold, outputs);
        break;
    case Layout::Kind::blended:
        for (int index = 0; index < images.count; ++index)
            run_blended(layout, images, index, threshold, outputs[index]);
        break;
    case Layout::Kind::resized:
        run_resized(layout, images, threshold, outputs);
        break;
    }
}

void TiledRun::run_abutting(const Layout &layout, const ImageBatch &images, float threshold,
                            const OutputBatch &outputs) const {
    const int64_t columns = layout.x.count, tiles = columns * layout.y.count;
    const int64_t items = tiles * images.count;
    // In device memory each tile writes what it has from its own corner on.  The last one comes first, so that those
    // above and left of it, whose pixels there are right, write over what is wrong at its upper and left side.
    const bool on_device = outputs.first.on_device, painted = on_device && tiles > 1;
    const PassShape shape = pass_shape(painted ? 1 : items, layout);
    const int64_t count = shape.count, passes = (items + count - 1) / count;
    const WindowReader windows(executor_, layout, images);
    Passes lanes(executor_, contexts_, shape, passes, painted);

    // In host memory a tile that gives all of its pixels writes to the caller's memory, any other to staging.
    const auto all_used = [](const TileAxis &axis, const TileSpan &tile) {
        return tile.begin == tile.origin && tile.end == tile.origin + axis.core;
    };
    const auto bytes_per_pixel = static_cast<int64_t>(result_bytes(outputs.first.type, plan_));
    const int64_t staging_row = layout.x.core * bytes_per_pixel, staging = layout.y.core * staging_row;

    struct Place {
        int image;
        TileSpan y, x;
        bool in_place;
    };
    const auto place = [&](int64_t item) -> Place {
        if (painted)
            item = items - 1 - item;
        const TileSpan y = layout.y[item % tiles / columns], x = layout.x[item % columns];
        return {static_cast<int>(item / tiles), y, x, on_device || (all_used(layout.y, y) && all_used(layout.x, x))};
    };
    const auto target = [&](const Place &at) {
        OutputView view = outputs[at.image];
        const int64_t top = on_device ? at.y.origin : at.y.begin, left = on_device ? at.x.origin : at.x.begin;
        view.data += top * view.row_stride + left * bytes_per_pixel;
        if (on_device) {
            view.rows = at.y.end - top;
            view.columns = at.x.end - left;
        }
        return view;
    };
    const auto in_pass = [&](int64_t pass) { return std::min(count, items - pass * count); };

    int latest_image = -1; // whose tiles follow each other
    PixelTransform transform;
    const auto start = [&](int64_t pass, Workspace &workspace) {
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const auto slot = static_cast<size_t>(i);
            const Place at = place(pass * count + i);
            if (at.image != latest_image)
                transform = pixel_transform(plan_, images, latest_image = at.image);
            windows.read(workspace, slot, at.image, at.y, at.x, transform);
            workspace.outputs[slot] =
                at.in_place ? target(at)
                            : OutputView{workspace.staging(static_cast<size_t>(staging * count)) + i * staging,
                                         outputs.first.type, staging_row};
        }
        lanes.begin(workspace, in_pass(pass), logit(threshold));
    };
    const auto collect = [&](int64_t pass, Workspace &workspace) {
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const Place at = place(pass * count + i);
            if (at.in_place)
                continue;
            const OutputView to = target(at);
            const std::byte *from = workspace.outputs[static_cast<size_t>(i)].data +
                                    (at.y.begin - at.y.origin) * staging_row +
                                    (at.x.begin - at.x.origin) * bytes_per_pixel;
            for (int64_t row = 0; row < at.y.end - at.y.begin; ++row)
                std::memcpy(to.data + row * to.row_stride, from + row * staging_row,
                            static_cast<size_t>((at.x.end - at.x.begin) * bytes_per_pixel));
        }
    };
    lanes.run(start, collect);
}

void TiledRun::run_blended(const Layout &layout, const ImageBatch &images, int index, float threshold,
                           const OutputView &output) const {
    const TileAxis &rows = layout.y, &columns = layout.x;
    const PassShape shape = pass_shape(columns.count, layout);
    const int64_t count = shape.count, passes_per_row = (columns.count + count - 1) / count;
    const WindowReader windows(executor_, layout, images);
    Passes lanes(executor_, contexts_, shape, rows.count * passes_per_row);
    const PixelTransform transform = pixel_transform(plan_, images, index);
    const int64_t channels = plan_.output_channels;
    const int64_t tile_row = columns.core * channels, tile_values = rows.core * tile_row;
    const int64_t tile_bytes = tile_values * static_cast<int64_t>(sizeof(float));

    // The weights of rows and columns, then the sums of one row of tiles.
    const int64_t band_row = layout.width * channels, band_rows = std::min(rows.core, layout.height);
    const int64_t weights = rows.count * rows.core + columns.count * columns.core;
    float *const weights_y = lanes.first().scratch(static_cast<size_t>(weights + band_rows * band_row));
    float *const weights_x = weights_y + rows.count * rows.core, *const band = weights_y + weights;
    blend_weights(rows, layout.overlap, weights_y);
    blend_weights(columns, layout.overlap, weights_x);
    std::fill_n(band, band_rows * band_row, 0.0F);

    struct Span {
        int64_t row, first, count; // tiles [first, first + count) of that row
    };
    const auto span = [&](int64_t pass) -> Span {
        const int64_t first = pass % passes_per_row * count;
        return {pass / passes_per_row, first, std::min(count, columns.count - first)};
    };
    const auto start = [&](int64_t pass, Workspace &workspace) {
        const Span tiles = span(pass);
        std::byte *const results = workspace.staging(static_cast<size_t>(tile_bytes * count));
        for (int64_t i = 0; i < tiles.count; ++i) {
            const auto slot = static_cast<size_t>(i);
            windows.read(workspace, slot, index, rows[tiles.row], columns[tiles.first + i], transform);
            workspace.outputs[slot] = {results + i * tile_bytes, ResultType::probability,
                                       tile_row * static_cast<int64_t>(sizeof(float))};
        }
        lanes.begin(workspace, tiles.count, 0.0F);
    };

    // What the next row of tiles does not add to is written out, the rest moves up.
    const auto finish_row = [&](int64_t row) {
        const int64_t origin = rows[row].origin;
        const int64_t finished = (row + 1 == rows.count ? layout.height : rows[row + 1].origin) - origin;
        threads_.run(finished, [&](int64_t line, int) {
            float *values = band + line * band_row;
            if (plan_.output_kind != OutputKind::identity) // weights add up to 1 only nearly
                for (int64_t i = 0; i < band_row; ++i)
                    values[i] = std::min(values[i], 1.0F);
            write_row(values, layout.width, plan_, threshold, output, origin + line);
        });
        std::fill(std::copy(band + finished * band_row, band + band_rows * band_row, band), band + band_rows * band_row,
                  0.0F);
    };
    const auto collect = [&](int64_t pass, const Workspace &workspace) {
        const Span tiles = span(pass);
        const TileSpan y = rows[tiles.row];
        threads_.run(y.end - y.begin, [&](int64_t line, int) {
            const float weight_y = weights_y[tiles.row * rows.core + line];
            for (int64_t i = 0; i < tiles.count; ++i) {
                const int64_t column = tiles.first + i;
                const TileSpan x = columns[column];
                const float *from =
                    reinterpret_cast<const float *>(workspace.outputs[static_cast<size_t>(i)].data) + line * tile_row;
                const float *const weight_x = weights_x + column * columns.core;
                float *to = band + line * band_row + x.begin * channels;
                for (int64_t pixel = 0; pixel < x.end - x.begin; ++pixel)
                    for (int64_t channel = 0; channel < channels; ++channel)
                        *to++ += weight_y * weight_x[pixel] * *from++;
            }
        });
        if (tiles.first + tiles.count == columns.count)
            finish_row(tiles.row);
    };
    lanes.run(start, collect);
}

void TiledRun::run_resized(const Layout &layout, const ImageBatch &images, float threshold,
                           const OutputBatch &outputs) const {
    const int64_t side_y = layout.y.result, side_x = layout.x.result;
    const int channels = plan_.output_channels;
    const int64_t pixel_values = side_y * side_x * images.channels, result_row = side_x * channels;
    const int64_t image_bytes = side_y * result_row * static_cast<int64_t>(sizeof(float));
    const int64_t row_values = layout.width * channels;
    const PassShape shape = pass_shape(images.count, layout);
    const int64_t count = shape.count, passes = (images.count + count - 1) / count;
    Passes lanes(executor_, contexts_, shape, passes);
    const auto in_pass = [&](int64_t pass) { return std::min(count, images.count - pass * count); };

    // The small images of a pass, then one row of a result for each thread.
    const auto pixels_of = [&](Workspace &workspace) {
        return workspace.scratch(static_cast<size_t>(pixel_values * count + row_values * threads_.threads()));
    };
    const auto start = [&](int64_t pass, Workspace &workspace) {
        float *const pixels = pixels_of(workspace);
        threads_.run(side_y * in_pass(pass), [&](int64_t task, int) {
            const int64_t image = task / side_y, row = task % side_y;
            resize_row(images[pass * count + image], images.height, images.width, images.channels, row, side_y, side_x,
                       pixels + image * pixel_values + row * side_x * images.channels);
        });
        ImageBatch small;
        small.first =
            tight_view(reinterpret_cast<const std::byte *>(pixels), PixelType::float32, side_x, images.channels);
        small.image_stride = pixel_values * static_cast<int64_t>(sizeof(float));
        small.height = side_y;
        small.width = side_x;
        small.channels = images.channels;
        const WindowReader windows(executor_, layout, small);
        std::byte *const results = workspace.staging(static_cast<size_t>(image_bytes * count));
        for (int64_t i = 0; i < in_pass(pass); ++i) {
            const auto slot = static_cast<size_t>(i);
            const int index = static_cast<int>(i);
            windows.read(workspace, slot, index, layout.y[0], layout.x[0],
                         pixel_transform(plan_, images, static_cast<int>(pass * count) + index));
            workspace.outputs[slot] = {results + i * image_bytes, ResultType::probability,
                                       result_row * static_cast<int64_t>(sizeof(float))};
        }
        lanes.begin(workspace, in_pass(pass), 0.0F);
    };
    const auto collect = [&](int64_t pass, Workspace &workspace) {
        float *const rows = pixels_of(workspace) + pixel_values * count;
        threads_.run(layout.height * in_pass(pass), [&](int64_t task, int worker) {
            const int64_t image = task / layout.height, row = task % layout.height;
            float *const values = rows + worker * row_values;
            const ImageView probability =
                tight_view(workspace.outputs[static_cast<size_t>(image)].data, PixelType::float32, side_x, channels);
            resize_row(probability, side_y, side_x, channels, row, layout.height, layout.width, values);
            write_row(values, layout.width, plan_, threshold, outputs[pass * count + image], row);
        });
    };
    lanes.run(start, collect);
}

} // namespace uf
