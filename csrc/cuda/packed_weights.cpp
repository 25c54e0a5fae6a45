#include "cuda/packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace uf::cuda {

namespace {

void store(float value, ElementType type, std::byte *target) {
    if (type == ElementType::float32) {
        std::memcpy(target, &value, sizeof value);
        return;
    }
    const uint16_t half = type == ElementType::fp16 ? to_fp16(value) : to_bf16(value);
    std::memcpy(target, &half, sizeof half);
}

} // namespace

uint16_t to_bf16(float value) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value)
        return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

uint16_t to_fp16(float value) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<uint16_t>((bits >> 16U) & 0x8000U);
    bits &= 0x7FFFFFFFU;
    if (bits > 0x7F800000U)
        return sign | 0x7E00U;
    if (bits >= 0x477FF000U) // 65520, the middle between the largest half and the next
        return sign | 0x7C00U;
    if (bits < 0x38800000U) { // below 2^-14: adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded
        float magnitude = 0;
        std::memcpy(&magnitude, &bits, sizeof bits);
        magnitude += 0.5F;
        std::memcpy(&bits, &magnitude, sizeof bits);
        return sign | static_cast<uint16_t>(bits - 0x3F000000U);
    }
    bits += 0xFFFU + ((bits >> 13U) & 1U);
    return sign | static_cast<uint16_t>((bits - 0x38000000U) >> 13U);
}

float from_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t{bits} << 16U;
    float value = 0;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

float from_fp16(uint16_t bits) {
    const int exponent = bits >> 10U & 31U, fraction = bits & 1023U;
    float magnitude = 0;
    if (exponent == 31)
        magnitude = fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    else if (exponent == 0)
        magnitude = std::ldexp(static_cast<float>(fraction), -24);
    else
        magnitude = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

size_t packed_bytes(const PackedWeight &weight) {
    int64_t elements = 1;
    for (const int64_t extent : weight.padded)
        elements *= extent;
    return static_cast<size_t>(elements * element_bytes(weight.type));
}

void pack(const PackedWeight &weight, std::byte *target) {
    const size_t rank = weight.shape.size();
    const auto element = static_cast<size_t>(element_bytes(weight.type));
    std::memset(target, 0, packed_bytes(weight));
    std::vector<int64_t> index(rank, 0); // of the row that begins at `source`
    const auto row = static_cast<size_t>(weight.shape[rank - 1]);
    const Floats &values = weight.tensor->values;
    for (size_t source = 0; source < values.size(); source += row) {
        int64_t position = 0;
        for (size_t axis = 0; axis < rank; ++axis)
            position = position * weight.padded[axis] + index[axis];
        std::byte *const first = target + static_cast<size_t>(position) * element;
        for (size_t i = 0; i < row; ++i)
            store(values[source + i], weight.type, first + i * element);
        for (size_t axis = rank - 1; axis-- > 0;) {
            if (++index[axis] < weight.shape[axis])
                break;
            index[axis] = 0;
        }
    }
}

} // namespace uf::cuda
