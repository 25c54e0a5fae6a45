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
    static Pixels load(const char *from) {
        const auto pixels = (Ints)ByteProducts::load(from);
        return (Pixels)(ByteProducts::centred ? flip(pixels) : pixels); // flips twice, or not at all
    }
};

// One block of P vectors of tiles, for G groups.
struct TileBlock {
    const char *input;
    int64_t plane_stride;
    int planes;
    const int32_t *weights; // [G][planes][plane_outputs]
    char *sums;
    int64_t group_stride, output_stride;
};

// Not inlined, as one function for each size is code enough.
template <int G, int P> __attribute__((noinline)) void multiply_block(const TileBlock &block) {
    const int64_t of_group = int64_t{block.planes} * plane_outputs, plane_stride = block.plane_stride;
    const char *plane = block.input;
    const int32_t *weights = block.weights, *const end = weights + of_group;
    Ints sum[G][plane_outputs][P] = {};
    for (; weights != end; weights += plane_outputs, plane += plane_stride) {
        TileProducts::Pixels pixels[P];
#pragma GCC unroll 8
        for (int v = 0; v < P; ++v)
            pixels[v] = TileProducts::load(plane + v * vector_bytes);
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) {
            // What comes after this block: the many weights of deep layers come from the third cache.
            __builtin_prefetch(weights + (G + g) * of_group);
#pragma GCC unroll 4
            for (int o = 0; o < plane_outputs; ++o) {
                const TileProducts::Weights weight = TileProducts::of_output(weights + g * of_group, o);
#pragma GCC unroll 8
                for (int v = 0; v < P; ++v)
                    TileProducts::multiply_add(sum[g][o][v], pixels[v], weight);
            }
        }
    }
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
#pragma GCC unroll 8
            for (int v = 0; v < P; ++v)
                store(block.sums + g * block.group_stride + o * block.output_stride + v * vector_bytes, sum[g][o][v]);
        }
    }
}

typedef void (*MultiplyBlock)(const TileBlock &block);
// For 0 to `most` vectors and G groups.
template <int G, int most> inline MultiplyBlock block_function(int64_t vectors) {
    if constexpr (most > 0)
        return vectors == most ? multiply_block<G, most> : block_function<G, most - 1>(vectors);
    return nullptr;
}

// Where all tiles fit into half a block, a block takes two groups instead, so that more multiply-adds share the loads
// of weights, and enough of them are under way.
constexpr int most_of_two = most_vectors / 2;

// A template, as most instruction sets do not need it.
template <class Products>
void add_excess(const TileProduct &product, const ExcessWeight *first, const ExcessWeight *end, const char *input,
                char *sums) {
    for (; first != end; ++first) {
        const char *from = input + first->plane * product.plane_stride;
        char *to = sums + first->output * product.output_stride;
        const auto weight = Products::broadcast(&first->weights);
        for (int64_t v = 0; v < product.vectors; ++v, from += vector_bytes, to += vector_bytes) {
            Ints sum = load(to);
            Products::multiply_add(sum, Products::load(from), weight);
            store(to, sum);
        }
    }
}

void multiply_tiles(const TileProduct &given) {
    const TileProduct product = given;
    const int64_t vectors = product.vectors, of_group = int64_t{product.planes} * plane_outputs;
    // Blocks of almost equal size: the first `larger` of them have one vector more.
    const bool of_two = vectors <= most_of_two;
    const int64_t blocks = (vectors + most_vectors - 1) / most_vectors, size = vectors / blocks,
                  larger = vectors % blocks;
    const MultiplyBlock two = of_two ? block_function<2, most_of_two>(vectors) : nullptr,
                        one = block_function<1, most_vectors>(size),
                        one_larger = block_function<1, most_vectors>(size + 1);
    const int positions = product.side * product.side;
    const int64_t position_stride = product.planes * product.plane_stride,
                  sum_stride = plane_outputs * product.output_stride, group_stride = positions * sum_stride;
    const auto *weights = reinterpret_cast<const int32_t *>(product.weights);
    const int64_t *excess = product.excess.begin;
    for (int position = 0; position < positions; ++position) {
        const int row = position / product.side, column = position % product.side;
        const char *const input = product.input + (row * product.row_positions + column) * position_stride;
        for (int group = 0; group < product.groups;) {
            char *const sums = product.sums + position * sum_stride + group * group_stride;
            TileBlock block = {input, product.plane_stride, product.planes,       weights,
                               sums,  group_stride,         product.output_stride};
            const int together = of_two && group + 1 < product.groups ? 2 : 1;
            if (together == 2) {
                two(block);
            } else {
                for (int64_t i = 0; i < blocks; ++i) {
                    (i < larger ? one_larger : one)(block);
                    const int64_t bytes = (i < larger ? size + 1 : size) * vector_bytes;
                    block.input += bytes;
                    block.sums += bytes;
                }
            }
            for (int g = 0; g < together; ++g, ++excess)
                if constexpr (TileProducts::largest_pair < any_pair)
                    add_excess<TileProducts>(product, product.excess.all + excess[0], product.excess.all + excess[1],
                                             input, sums + g * group_stride);
            weights += together * of_group;
            group += together;
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
