// How the CPU executor keeps activations: pixels with their channels innermost, padded to whole vectors, and a frame of
// zero pixels around each image, so that no convolution ever tests a border.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace uf {

// bfloat16: the upper half of a float32.
struct Bf16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(Bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void from_float(float value, float &result) { result = value; }
// Rounds to nearest, ties to even; NaN stays NaN.
inline void from_float(float value, Bf16 &result) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    result.bits = static_cast<uint16_t>(value != value ? bits >> 16 | 0x40 : rounded);
}

// IEEE 754 binary16, of which only products are made.
struct Fp16 {
    uint16_t bits;
};

// Rounds to nearest, ties to even; beyond the largest number infinity, NaN stays NaN.
inline void from_float(float value, Fp16 &result) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    constexpr uint32_t least_normal = 0x38800000, infinity = 0x7F800000, beyond = 0x47800000; // 2^-14, inf, 2^16
    uint32_t rounded = 0;
    if (magnitude > infinity) {
        rounded = 0x7E00;
    } else if (magnitude >= beyond) {
        rounded = 0x7C00;
    } else if (magnitude < least_normal) {
        // In 0.5 + value the last bit is 2^-24, that of the numbers below 2^-14.
        const float sum = std::abs(value) + 0.5F;
        std::memcpy(&rounded, &sum, sizeof rounded);
        rounded -= 0x3F000000;
    } else {
        rounded = (magnitude - (112U << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    }
    result.bits = static_cast<uint16_t>(sign | rounded);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// A tensor of `count` images inside the arena.  Strides in bytes.
struct Activations {
    std::byte *data = nullptr; // pixel (0, 0) of image 0, inside the frame
    int height = 0, width = 0, channels = 0;
    int padded_channels = 0; // those above `channels` hold zeros
    int halo = 0;            // zero pixels around each image
    bool bf16 = false;       // else float32
    int64_t pixel_stride = 0, row_stride = 0, image_stride = 0;

    void lay_out() {
        pixel_stride = static_cast<int64_t>(padded_channels) * (bf16 ? sizeof(Bf16) : sizeof(float));
        row_stride = pixel_stride * (width + 2 * halo);
        image_stride = row_stride * (height + 2 * halo);
    }
    // From the start of the memory to `data`.
    int64_t offset() const { return halo * (row_stride + pixel_stride); }

    std::byte *pixel(int64_t image, int64_t y, int64_t x) const {
        return data + image * image_stride + y * row_stride + x * pixel_stride;
    }
    template <class Element> Element *pixel_as(int64_t image, int64_t y, int64_t x) const {
        return reinterpret_cast<Element *>(pixel(image, y, x));
    }

    // Zeroes the frame beside row y, and above the first and below the last one.
    void clear_frame(int64_t image, int64_t y) const {
        if (halo == 0)
            return;
        const auto side = static_cast<size_t>(halo * pixel_stride), edge = static_cast<size_t>(halo * row_stride);
        if (y == 0)
            std::memset(pixel(image, -halo, -halo), 0, edge);
        std::memset(pixel(image, y, -halo), 0, side);
        std::memset(pixel(image, y, width), 0, side);
        if (y == height - 1)
            std::memset(pixel(image, height, -halo), 0, edge);
    }
};

} // namespace uf
