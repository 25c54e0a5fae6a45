// Compiled like int8_kernels.cpp, whose products and planes these are.
#include "int8_winograd_kernels.h"

#include "int8_vector.h"

namespace uf {
namespace {

constexpr int64_t vector_bytes = lane_count * 4;

inline Ints load(const char *from) { return *reinterpret_cast<const LooseInts *>(from); }
inline void store(char *to, Ints value) { *reinterpret_cast<LooseInts *>(to) = value; }

// -- four bytes a lane ------------------------------------------------------------------------------------------------

// (a + b + 1) / 2 of bytes.
inline Ints average_up(Ints a, Ints b) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_avg_epu8((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_avg_epu8((__m256i)a, (__m256i)b);
#elif defined(UF_NEON)
    return (Ints)vrhaddq_u8((uint8x16_t)a, (uint8x16_t)b);
#else
    const Bytes either = (Bytes)a | (Bytes)b, other = (Bytes)a ^ (Bytes)b;
    return (Ints)(either - (other >> 1));
#endif
}

// (a + b) / 2 of bytes.
inline Ints average_down(Ints a, Ints b) {
#if defined(UF_NEON)
    return (Ints)vhaddq_u8((uint8x16_t)a, (uint8x16_t)b);
#else
    return ~average_up(~a, ~b);
#endif
}

// a - b of numbers, cut to -128..127.
inline Ints difference(Ints a, Ints b) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_subs_epi8((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_subs_epi8((__m256i)a, (__m256i)b);
#elif defined(UF_NEON)
    return (Ints)vqsubq_s8((int8x16_t)a, (int8x16_t)b);
#else
    const Bytes x = (Bytes)a, y = (Bytes)b, wrapped = x - y;
    // Beyond the range where the signs differ and the result has that of b; then it is the end on the side of a.
    const Bytes beyond = (Bytes)(((x ^ y) & (x ^ wrapped)) >= 128), end = 127 + (x >> 7);
    return (Ints)((wrapped & ~beyond) | (end & beyond));
#endif
}

// -- windows to positions ---------------------------------------------------------------------------------------------

struct WindowTransform {
    static constexpr int count = 4;
    // Whether row `row` of what `columns` gives holds bytes, not numbers.
    static constexpr bool holds_bytes(int row) { return row == 1; }
    // Down the columns of a window of pixels.
    static void columns(const Ints (&row)[4], Ints (&result)[count]) {
        const Ints first = flip(row[0]), second = flip(row[1]), third = flip(row[2]), fourth = flip(row[3]);
        result[0] = difference(first, third);
        result[1] = average_up(row[1], row[2]);
        result[2] = difference(third, second);
        result[3] = difference(second, fourth);
    }
    // Along a row, of numbers and the bytes above them: bytes.
    static void rows(const Ints (&number)[4], const Ints (&byte)[4], Ints (&result)[count]) {
        result[0] = flip(difference(number[0], number[2]));
        result[1] = average_down(byte[1], byte[2]);
        result[2] = flip(difference(number[2], number[1]));
        result[3] = flip(difference(number[1], number[3]));
    }
};

// The same for the phases of an upsampled tensor: differences to the neighbours, and the two middle ones as they are.
struct LowTransform {
    static constexpr int count = low_side;
    static constexpr bool holds_bytes(int row) { return row % 2 == 1; }
    static void differences(const Ints (&number)[4], Ints (&result)[count]) {
        result[0] = difference(number[0], number[1]);
        result[2] = difference(number[2], number[1]);
        result[4] = difference(number[3], number[2]);
    }
    static void columns(const Ints (&row)[4], Ints (&result)[count]) {
        differences({flip(row[0]), flip(row[1]), flip(row[2]), flip(row[3])}, result);
        result[1] = row[1];
        result[3] = row[2];
    }
    static void rows(const Ints (&number)[4], const Ints (&byte)[4], Ints (&result)[count]) {
        differences(number, result);
        for (int i = 0; i < count; i += 2)
            result[i] = flip(result[i]);
        result[1] = byte[1];
        result[3] = byte[2];
    }
};

// Here and below, arguments are copied, as for all that the compiler knows a store through a vector may change them.
template <class Transform> void transform_windows(const TileWindows &given) {
    constexpr int count = Transform::count;
    const TileWindows windows = given;
    const char *plane = windows.input;
    char *to = windows.output;
    for (int i = 0; i < windows.planes; ++i, plane += windows.plane_stride, to += windows.output_plane_stride) {
        for (int64_t tile = 0; tile < windows.tiles; tile += lane_count) {
            // Pixels 0 and 1 of each window from here on, and its pixels 2 and 3 two pixels further.
            Ints transformed[2][2][count];
#pragma GCC unroll 2
            for (int pair = 0; pair < 2; ++pair) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const char *const from = plane + 8 * (tile + pair) + half * vector_bytes;
                    const Ints row[4] = {load(from), load(from + windows.row_stride),
                                         load(from + 2 * windows.row_stride), load(from + 3 * windows.row_stride)};
                    Transform::columns(row, transformed[pair][half]);
                }
            }
#pragma GCC unroll 5
            for (int row = 0; row < count; ++row) {
                Ints pixel[4], flipped[4], result[count];
#pragma GCC unroll 2
                for (int pair = 0; pair < 2; ++pair) {
                    const Ints left = transformed[pair][0][row], right = transformed[pair][1][row];
                    pixel[2 * pair] = __builtin_shufflevector(left, right, UF_EVEN);
                    pixel[2 * pair + 1] = __builtin_shufflevector(left, right, UF_ODD);
                }
#pragma GCC unroll 4
                for (int column = 0; column < 4; ++column)
                    flipped[column] = flip(pixel[column]);
                if (Transform::holds_bytes(row))
                    Transform::rows(flipped, pixel, result);
                else
                    Transform::rows(pixel, flipped, result);
#pragma GCC unroll 5
                for (int column = 0; column < count; ++column)
                    store(to + (row * count + column) * windows.position_stride + 4 * tile,
                          ByteProducts::centred ? flip(result[column]) : result[column]);
            }
        }
    }
}

// -- products ---------------------------------------------------------------------------------------------------------

// Tiles at their positions are as the instructions take them.
struct TileProducts : ByteProducts {
    static constexpr bool centred = false;
    static Pixels load(const char *from) {
        const auto pixels = (Ints)ByteProducts::load(from);
        return (Pixels)(ByteProducts::centred ? flip(pixels) : pixels); // flips twice, or not at all
    }
};

template <int P> void multiply_vectors(const TileProduct &product, int vectors, int64_t first) {
    if constexpr (P > 0) {
        if (vectors != P)
            return multiply_vectors<P - 1>(product, vectors, first);
        char *const sums = product.sums + first * vector_bytes;
        const int64_t output_stride = product.output_stride;
        Ints sum[plane_outputs][P] = {};
        int64_t pixels[P];
#pragma GCC unroll 8
        for (int v = 0; v < P; ++v)
            pixels[v] = v * vector_bytes;
        const int64_t tap = first * vector_bytes;
        accumulate<TileProducts, 0, 1>(
            sum, {product.input, product.plane_stride, product.planes, pixels, &tap, 1, product.weights, {}, nullptr});
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
#pragma GCC unroll 8
            for (int v = 0; v < P; ++v)
                store(sums + o * output_stride + v * vector_bytes, sum[o][v]);
        }
    }
}

void multiply_tiles(const TileProduct &product) {
    const int64_t blocks = (product.vectors + most_vectors - 1) / most_vectors;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = product.vectors * block / blocks, end = product.vectors * (block + 1) / blocks;
        multiply_vectors<most_vectors>(product, static_cast<int>(end - first), first);
    }
    if constexpr (TileProducts::largest_pair < any_pair) {
        for (int i = 0; i < product.excess.count; ++i) {
            const ExcessWeight &excess = product.excess.first[i];
            const char *from = product.input + excess.plane * product.plane_stride;
            char *to = product.sums + excess.output * product.output_stride;
            const auto weight = TileProducts::broadcast(&excess.weights);
            for (int64_t v = 0; v < product.vectors; ++v, from += vector_bytes, to += vector_bytes) {
                Ints sum = load(to);
                TileProducts::multiply_add(sum, TileProducts::load(from), weight);
                store(to, sum);
            }
        }
    }
}

// -- sums to pixels ---------------------------------------------------------------------------------------------------

// Along one axis.
inline void window_outputs(const Ints (&at)[4], Ints &first, Ints &second) {
    const Ints twice = at[1] + at[1];
    first = at[0] + twice + at[2];
    second = twice - at[2] - at[3];
}

void finish_tiles(const TileOutputs &given) {
    const TileOutputs outputs = given;
    const Ints lanes = {UF_LANES};
    for (int64_t tile = 0; tile < outputs.tiles; tile += lane_count) {
        Floats value[2][2][plane_outputs];
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
            const char *const from = outputs.sums + o * outputs.output_stride + 4 * tile;
            Ints by_column[2][4], sum[2][2];
#pragma GCC unroll 4
            for (int row = 0; row < 4; ++row) {
                Ints at[4];
#pragma GCC unroll 4
                for (int column = 0; column < 4; ++column)
                    at[column] = load(from + (4 * row + column) * outputs.position_stride);
                window_outputs(at, by_column[0][row], by_column[1][row]);
            }
            window_outputs(by_column[0], sum[0][0], sum[1][0]);
            window_outputs(by_column[1], sum[0][1], sum[1][1]);
#pragma GCC unroll 2
            for (int a = 0; a < 2; ++a) {
#pragma GCC unroll 2
                for (int b = 0; b < 2; ++b) {
                    sum[a][b] += outputs.bias[(2 * a + b) * plane_outputs + o];
                    if (outputs.addends != nullptr)
                        sum[a][b] += load(outputs.addends + (2 * a + b) * outputs.pixel_stride +
                                          o * outputs.addend_output_stride + 4 * tile);
                }
                if (outputs.first_bias != nullptr) {
                    if (tile == 0)
                        sum[a][0] += (lanes == 0) & outputs.first_bias[a * plane_outputs + o];
                    if (tile + lane_count >= outputs.tiles)
                        sum[a][1] += (lanes == static_cast<int32_t>(outputs.tiles - 1 - tile)) &
                                     outputs.last_bias[a * plane_outputs + o];
                }
#pragma GCC unroll 2
                for (int b = 0; b < 2; ++b)
                    value[a][b][o] = __builtin_convertvector(sum[a][b], Floats) * outputs.multiplier[o];
            }
        }
#pragma GCC unroll 2
        for (int a = 0; a < 2; ++a) {
            const Ints left = to_bytes(value[a][0]), right = to_bytes(value[a][1]);
            char *const to = (a == 0 ? outputs.upper : outputs.lower) + 8 * tile;
            store(to, __builtin_shufflevector(left, right, UF_LOW));
            store(to + vector_bytes, __builtin_shufflevector(left, right, UF_HIGH));
        }
    }
}

void finish_phase(const PhaseOutputs &given) {
    const PhaseOutputs outputs = given;
    for (int64_t tile = 0; tile < outputs.tiles; tile += lane_count) {
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
            const char *const from = outputs.sums + o * outputs.output_stride + 4 * tile;
            Ints left[3], right[3];
#pragma GCC unroll 3
            for (int row = 0; row < 3; ++row) {
                const char *const at = from + 3 * row * outputs.position_stride;
                const Ints middle = load(at + outputs.position_stride);
                left[row] = load(at) + middle;
                right[row] = middle + load(at + 2 * outputs.position_stride);
            }
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k) {
                const Ints even = left[k] + left[k + 1] + outputs.constants[2 * k * plane_outputs + o];
                const Ints odd = right[k] + right[k + 1] + outputs.constants[(2 * k + 1) * plane_outputs + o];
                char *const to = (k == 0 ? outputs.upper : outputs.lower) + o * outputs.result_stride + 8 * tile;
                store(to, __builtin_shufflevector(even, odd, UF_LOW));
                store(to + vector_bytes, __builtin_shufflevector(even, odd, UF_HIGH));
            }
        }
    }
}

} // namespace

const Int8WinogradKernels UF_JOIN(int8_winograd_kernels_, UF_ISA) = {
    transform_windows<WindowTransform>, transform_windows<LowTransform>, multiply_tiles, finish_tiles, finish_phase};

} // namespace uf
