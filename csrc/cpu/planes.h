// How the int8 path keeps tensors: planes of 4 bytes per pixel, see int8_kernels.h, with a frame of zero pixels around
// each image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "activations.h"

namespace uf {

// Cut to 0..255 and rounded to nearest, ties to even; NaN becomes 255.  As the kernels do it.
inline uint8_t nearest_byte(float value) {
    value = value < 255.0F ? value : 255.0F;
    value = value > 0.0F ? value : 0.0F;
    constexpr float whole = 12582912.0F; // 1.5 * 2^23: behind it come only whole numbers
    return static_cast<uint8_t>(value + whole - whole);
}

// A tensor of several images inside the arena.  Strides in bytes.
struct Planes {
    static constexpr int64_t pixel_bytes = 4;

    std::byte *data = nullptr; // pixel (0, 0) of image 0 in plane 0, inside the frame; aligned to a cache line
    int height = 0, width = 0;
    int planes = 0;
    int halo = 0; // zero pixels around each image, at most 16
    int64_t row_stride = 0, plane_stride = 0, image_stride = 0;

    // Rows begin at a cache line, and so far apart that a pair of vectors which begins inside a row can be written
    // whole without touching the frame of the next.
    void lay_out() {
        constexpr int widest_pair = 32, gap = 16;
        row_stride = pixel_bytes * (round_up(width, widest_pair) + gap);
        plane_stride = row_stride * (height + 2 * halo);
        image_stride = plane_stride * planes;
    }
    // From the start of the memory to `data`.
    int64_t offset() const { return lead + halo * row_stride; }
    // Memory beside the planes: for the frame left of the first row, and for vectors that read beyond the last.
    static constexpr int64_t lead = 64, tail = 256;

    std::byte *row(int64_t image, int64_t plane, int64_t y) const {
        return data + image * image_stride + plane * plane_stride + y * row_stride;
    }

    // Zeroes the frame beside row y, and above the first and below the last one.
    void clear_frame(int64_t image, int64_t plane, int64_t y) const {
        if (halo == 0)
            return;
        const auto side = static_cast<size_t>(halo * pixel_bytes), edge = static_cast<size_t>(halo * row_stride);
        std::byte *const from = row(image, plane, y) - side;
        if (y == 0)
            std::memset(from - edge, 0, edge);
        std::memset(from, 0, side);
        std::memset(from + side + width * pixel_bytes, 0, side);
        if (y == height - 1)
            std::memset(from + row_stride, 0, edge);
    }
};

} // namespace uf
