#include "mirrored_images.h"

#include <algorithm>
#include <cstdlib>

namespace uf {

namespace {

// How an image lies in memory: as `planes` of pixels that lie `pixel` bytes apart and are `unit` bytes long, the first
// of them `low` bytes from the first pixel's first channel (whose channels may be in falling order).
struct Planes {
    int64_t planes, unit, low, pixel;
    int64_t row_bytes(int64_t width) const { return (width - 1) * pixel + unit; }
};

Planes planes_of(const ImageBatch &images) {
    const ImageView &view = images.first;
    const auto item = static_cast<int64_t>(pixel_bytes(view.type));
    const int64_t reach = (images.channels - 1) * view.channel_stride;
    if (std::abs(reach) + item <= view.pixel_stride)
        return {1, std::abs(reach) + item, std::min<int64_t>(reach, 0), view.pixel_stride};
    return {images.channels, item, 0, view.pixel_stride};
}

} // namespace

bool MirroredImages::possible(const ImageBatch &images) {
    const Planes planes = planes_of(images);
    return planes.pixel >= planes.unit && images.first.row_stride >= planes.row_bytes(images.width);
}

MirroredImages::MirroredImages(const Executor &executor, const ImageBatch &images, int64_t border, int64_t rows,
                               int64_t columns)
    : batch_(images) {
    const Planes planes = planes_of(images);
    const int64_t row_stride = columns * planes.pixel, plane_stride = rows * row_stride;
    batch_.image_stride = planes.planes * plane_stride;
    memory_ = executor.allocate(static_cast<size_t>(images.count * batch_.image_stride));
    batch_.height = rows;
    batch_.width = columns;
    batch_.first.data = memory_.get() - planes.low;
    batch_.first.row_stride = row_stride;
    if (planes.planes > 1)
        batch_.first.channel_stride = plane_stride;

    for (int64_t plane = 0; plane < images.count * planes.planes; ++plane) {
        const ImageView view = images[plane / planes.planes];
        const std::byte *const from = view.data + planes.low + plane % planes.planes * view.channel_stride;
        std::byte *const to = memory_.get() + plane * plane_stride;
        // Columns [x, x + width) of the copy, from column `source_x` of the image on.
        const auto copy_columns = [&](int64_t x, int64_t source_x, int64_t width) {
            executor.copy_rows(to + border * row_stride + x * planes.pixel, row_stride, from + source_x * planes.pixel,
                               view.row_stride, planes.row_bytes(width), images.height);
        };
        copy_columns(border, 0, images.width);
        for (int64_t x = 0; x < columns; ++x)
            if (x < border || x >= border + images.width)
                copy_columns(x, mirrored(x - border, images.width), 1);
        for (int64_t y = 0; y < rows; ++y)
            if (y < border || y >= border + images.height)
                executor.copy_rows(to + y * row_stride, row_stride,
                                   to + (border + mirrored(y - border, images.height)) * row_stride, row_stride,
                                   planes.row_bytes(columns), 1);
    }
}

} // namespace uf
