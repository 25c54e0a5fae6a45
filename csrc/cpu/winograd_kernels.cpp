// Compiled once per instruction set, as kernels.cpp is.
//
// One-dimensional filtering F(m, 3) evaluates polynomials at m + 1 points and at infinity: output = A' ((G g) * (B'
// d)). Two-dimensional filtering does so along both axes.  For m = 4 the points are 0, +-sqrt(2), +-sqrt(1/2): half the
// rounding error of the usual 0, +-1, +-2 at the same cost (measured: 4.4e-7 against 9.0e-7 at 16 channels, the direct
// sum has 1.6e-7).

#include "vector.h"

namespace uf {
namespace {

// `kernel` is G, `weights` applies all of it.
template <int m> struct Filtering;

// Points 0, 1, -1, infinity.
template <> struct Filtering<2> {
    static void input(const Vector (&d)[4], Vector (&v)[4]) {
        v[0] = d[0] - d[2];
        v[1] = d[2] + d[1];
        v[2] = d[2] - d[1];
        v[3] = d[3] - d[1];
    }
    static constexpr float kernel[4][3] = {
        {1.0F, 0.0F, 0.0F}, {0.5F, 0.5F, 0.5F}, {0.5F, -0.5F, 0.5F}, {0.0F, 0.0F, 1.0F}};
    static void weights(const Vector (&g)[3], Vector (&u)[4]) {
        const Vector even = 0.5F * (g[0] + g[2]), odd = 0.5F * g[1];
        u[0] = g[0];
        u[1] = even + odd;
        u[2] = even - odd;
        u[3] = g[2];
    }
    static void output(const Vector (&p)[4], Vector (&y)[2]) {
        y[0] = p[0] + (p[1] + p[2]);
        y[1] = p[3] + (p[1] - p[2]);
    }
};

// Points 0, a, -a, 1/a, -1/a, infinity with a = sqrt(2).
template <> struct Filtering<4> {
    static constexpr float a = 1.41421356F, b = 0.70710678F;
    static void input(const Vector (&d)[6], Vector (&v)[6]) {
        const Vector even_a = d[4] - 0.5F * d[2], odd_a = d[3] - 0.5F * d[1];
        const Vector even_b = d[4] - 2.0F * d[2], odd_b = d[3] - 2.0F * d[1];
        v[0] = (d[0] + d[4]) - 2.5F * d[2];
        v[1] = even_a + a * odd_a;
        v[2] = even_a - a * odd_a;
        v[3] = even_b + b * odd_b;
        v[4] = even_b - b * odd_b;
        v[5] = (d[1] + d[5]) - 2.5F * d[3];
    }
    static constexpr float kernel[6][3] = {{1.0F, 0.0F, 0.0F},
                                           {1.0F / 6.0F, a / 6.0F, 1.0F / 3.0F},
                                           {1.0F / 6.0F, -a / 6.0F, 1.0F / 3.0F},
                                           {-2.0F / 3.0F, -b / 1.5F, -1.0F / 3.0F},
                                           {-2.0F / 3.0F, b / 1.5F, -1.0F / 3.0F},
                                           {0.0F, 0.0F, 1.0F}};
    static void weights(const Vector (&g)[3], Vector (&u)[6]) {
        const Vector even_a = kernel[1][0] * g[0] + kernel[1][2] * g[2], odd_a = kernel[1][1] * g[1];
        const Vector even_b = kernel[3][0] * g[0] + kernel[3][2] * g[2], odd_b = kernel[3][1] * g[1];
        u[0] = g[0];
        u[1] = even_a + odd_a;
        u[2] = even_a - odd_a;
        u[3] = even_b + odd_b;
        u[4] = even_b - odd_b;
        u[5] = g[2];
    }
    static void output(const Vector (&p)[6], Vector (&y)[4]) {
        const Vector sum_a = p[1] + p[2], difference_a = p[1] - p[2];
        const Vector sum_b = p[3] + p[4], difference_b = p[3] - p[4];
        y[0] = p[0] + (sum_a + sum_b);
        y[1] = a * difference_a + b * difference_b;
        y[2] = 2.0F * sum_a + 0.5F * sum_b;
        y[3] = p[5] + (2.0F * a * difference_a + 0.5F * b * difference_b);
    }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The transforms have their arguments as copies, for a store through a Vector might change what a reference leads to.
//
// `whole`: all rows of the window exist.
template <class Input, int m, bool whole> void transform_columns(const WinogradInputColumns columns) {
    constexpr int n = m + 2, vector_bytes = lane_count * sizeof(typename Input::Stored), line = 64;
    constexpr int distance = 4 * m; // columns, so that pixels arrive in time
    const int64_t count = m * columns.tiles + 2, existing = smaller(count, columns.columns);
    const char *pixel = static_cast<const char *>(columns.input);
    char *output = reinterpret_cast<char *>(columns.output);
    for (int64_t x = 0; x < count; ++x, pixel += columns.pixel_stride, output += columns.column_stride) {
        for (int vector = 0; vector < columns.vectors; ++vector) {
            const char *input = pixel + vector * vector_bytes;
            if (columns.prefetches && vector * vector_bytes % line == 0 && x + distance < existing) {
#pragma GCC unroll 6
                for (int y = 0; y < n; ++y) {
                    if (whole || y < columns.rows)
                        __builtin_prefetch(input + y * columns.row_stride + distance * columns.pixel_stride);
                }
            }
            Vector column[n], transformed[n];
#pragma GCC unroll 6
            for (int y = 0; y < n; ++y) {
                const bool exists = x < existing && (whole || y < columns.rows);
                column[y] = exists ? in_register(Input::load(input + y * columns.row_stride)) : Vector{};
            }
            Filtering<m>::input(column, transformed);
#pragma GCC unroll 6
            for (int u = 0; u < n; ++u)
                Float32::store(output + u * columns.line_stride + vector * sizeof(Vector), transformed[u]);
        }
    }
}

template <class Input, int m> void transform_columns_of(const WinogradInputColumns &columns) {
    columns.rows >= m + 2 ? transform_columns<Input, m, true>(columns) : transform_columns<Input, m, false>(columns);
}

void transform_input_columns(const WinogradInputColumns &columns) {
#if defined(UF_BF16_PRODUCTS)
    if (columns.input_is_bf16)
        return columns.tile == 2 ? transform_columns_of<Bf16, 2>(columns) : transform_columns_of<Bf16, 4>(columns);
#endif
    columns.tile == 2 ? transform_columns_of<Float32, 2>(columns) : transform_columns_of<Float32, 4>(columns);
}

// Q vectors of channels at a time, for the sake of their addresses: 2 where the number is even, as in those below.
template <class Output, int m, int Q> void transform_row(const WinogradInputRow row) {
    constexpr int n = m + 2, vector_bytes = lane_count * sizeof(typename Output::Stored);
    for (int64_t tile = 0; tile < row.tiles; ++tile) {
        const char *from = reinterpret_cast<const char *>(row.input) + tile * m * row.column_stride;
        char *to = static_cast<char *>(row.output) + tile * row.tile_stride;
        for (int vector = 0; vector < row.vectors; vector += Q, from += Q * sizeof(Vector), to += Q * vector_bytes) {
#pragma GCC unroll 2
            for (int q = 0; q < Q; ++q) {
                Vector line[n], positions[n];
#pragma GCC unroll 6
                for (int x = 0; x < n; ++x)
                    line[x] = in_register(Float32::load(from + x * row.column_stride + q * sizeof(Vector)));
                Filtering<m>::input(line, positions);
#pragma GCC unroll 6
                for (int v = 0; v < n; ++v)
                    Output::store(to + v * row.position_stride + q * vector_bytes, positions[v]);
            }
        }
    }
}

template <class Output, int m> void transform_row_of(const WinogradInputRow &row) {
    row.vectors % 2 == 0 ? transform_row<Output, m, 2>(row) : transform_row<Output, m, 1>(row);
}

void transform_input_row(const WinogradInputRow &row) {
#if defined(UF_BF16_PRODUCTS)
    if (row.products == Products::bf16)
        return row.tile == 2 ? transform_row_of<Bf16, 2>(row) : transform_row_of<Bf16, 4>(row);
#endif
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
    if (row.products == Products::fp16)
        return row.tile == 2 ? transform_row_of<Fp16, 2>(row) : transform_row_of<Fp16, 4>(row);
#endif
    row.tile == 2 ? transform_row_of<Float32, 2>(row) : transform_row_of<Float32, 4>(row);
}

// Tiles at one position, those that are still to be done.
struct PositionProduct {
    const char *input;
    int64_t stride; // bytes from tile to tile
    const Vector *weights;
    int64_t units;
    bool adds;
    char *output;
    int64_t output_stride;
    const char *next; // see WinogradProduct
    int64_t step;     // bytes of it per unit of a block: fetching a line again costs nothing that can be measured
};

// In row p of a block of Q vectors.
template <int Q, class Number> inline void multiply_add(Number, int, Vector &sum, Vector weights, const char *unit) {
    Number::multiply_add(sum, weights, unit);
}

#if defined(UF_UNITS_IN_MEMORY)
// One load for two multiply-adds leaves no place free, so every other row does without (`relunet16` takes 0.99).
template <int Q> inline void multiply_add(Float32, int p, Vector &sum, Vector weights, const char *unit) {
    if (Q == 2 && p % 2 == 1) {
        const auto &value = *reinterpret_cast<const float *>(unit);
        asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(value));
    } else {
        Float32::multiply_add(sum, weights, unit);
    }
}
#endif

// Blocks of P tiles x Q vectors, one after the other, each in registers.  Inlined twice, as P and as P - 1, they would
// make the library larger than 2 MB.
template <int P, int Q, class Number>
__attribute__((noinline)) void multiply_blocks(Number, int64_t blocks, PositionProduct &product) {
    const int64_t stride = product.stride, units = product.units, output_stride = product.output_stride,
                  step = product.step;
    const bool adds = product.adds;
    const char *input = product.input, *next = product.next;
    char *output = product.output;
    for (int64_t block = 0; block < blocks; ++block, input += P * stride) {
        const RowAddresses<P> tile(input, stride);
        // Sums begin with a product instead of zeros or what they are added to: with 6 x 2 sums a block then begins
        // while the one before ends (Zen 3, in the first cache: 0.87 of the time with 16 units, 0.97 with 64).
        const Vector *weights = product.weights;
        Vector sum[P][Q];
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                sum[p][q] = Number::multiply(weights[q], tile[p]);
        }
        weights += Q;
        // By twos: 0.96 to 0.98 of the time of `relunet64`, most where another thread shares the core.
#pragma GCC unroll 2
        for (int64_t unit = 1; unit < units; ++unit, weights += Q, next += step) {
            __builtin_prefetch(next, 0, 2);
            Vector weight[Q];
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                weight[q] = weights[q];
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q)
                    multiply_add<Q>(Number{}, p, sum[p][q], weight[q], tile[p] + 4 * unit);
            }
        }
        if (adds) {
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q)
                    sum[p][q] += Float32::load(output + p * output_stride + q * sizeof(Vector));
            }
        }
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p, output += output_stride) {
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                Float32::store(output + q * sizeof(Vector), sum[p][q]);
        }
    }
    product.input = input;
    product.output = output;
    product.next = next;
}

#if defined(UF_UNITS_IN_MEMORY)
// One vector of outputs, two units at a time, whose sums stay apart until the end: sums of half as many terms round
// less.
struct Float32Pairs {
    // More rows need more addresses than there are registers: 14 take 1.01 of the time of `relunet16`.
    static constexpr int rows(int vectors) { return vectors == 1 ? 8 : 0; }
    static void multiply_add(Vector &even, Vector &odd, Vector first, Vector second, const char *pair) {
        Float32::multiply_add(even, first, pair);
        Float32::multiply_add(odd, second, pair + 4);
    }
    static void multiply_add_last(Vector &even, Vector &, Vector weights, const char *unit) {
        Float32::multiply_add(even, weights, unit);
    }
    static Vector sum(Vector even, Vector odd) { return even + odd; }
};
#elif defined(UF_FEW_LOADS)
// One vector of outputs, two units at a time: a lane multiplies one of the two, so that a pair that is loaded once
// serves two multiply-adds, as a unit does with two vectors of outputs: on an Ice Lake 16 units take 0.6 of the time.
struct Float32Pairs {
    typedef double Doubles __attribute__((vector_size(sizeof(Vector))));
    static constexpr int rows(int vectors) { return vectors == 1 ? block_rows(2) : 0; }
    // Lanes 0, 1, 4, 5, .. of both, and lanes 2, 3, 6, 7, ..: those of a in even lanes.
    static Vector low(Vector a, Vector b) {
        return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    }
    static Vector high(Vector a, Vector b) {
        return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    // The other way.
    static Vector even(Vector low, Vector high) {
        return __builtin_shufflevector(low, high, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    }
    static Vector odd(Vector low, Vector high) {
        return __builtin_shufflevector(low, high, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    }
    static void multiply_add(Vector &low_sum, Vector &high_sum, Vector first, Vector second, const char *pair) {
        double bits;
        __builtin_memcpy(&bits, pair, sizeof bits);
        const auto units = (Vector)(Doubles{bits, bits, bits, bits, bits, bits, bits, bits});
        low_sum += low(first, second) * units;
        high_sum += high(first, second) * units;
    }
    static void multiply_add_last(Vector &low_sum, Vector &high_sum, Vector weights, const char *unit) {
        const Vector units = Vector{} + *reinterpret_cast<const float *>(unit);
        low_sum += low(weights, Vector{}) * units;
        high_sum += high(weights, Vector{}) * units;
    }
    static Vector sum(Vector low_sum, Vector high_sum) { return even(low_sum, high_sum) + odd(low_sum, high_sum); }
};
#endif

#if defined(__AVX512F__)
template <int P, int Q>
__attribute__((noinline)) void multiply_blocks(Float32Pairs, int64_t blocks, PositionProduct &product) {
    typedef Float32Pairs Number;
    const int64_t stride = product.stride, units = product.units, step = 2 * product.step;
    const char *input = product.input, *next = product.next;
    char *output = product.output;
    for (int64_t block = 0; block < blocks; ++block, input += P * stride) {
        const RowAddresses<P> tile(input, stride);
        const Vector *weights = product.weights;
        Vector sum[P][2] = {};
        int64_t unit = 0;
        for (; unit + 1 < units; unit += 2, weights += 2, next += step) {
            __builtin_prefetch(next, 0, 2);
            const Vector first = weights[0], second = weights[1];
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p)
                Number::multiply_add(sum[p][0], sum[p][1], first, second, tile[p] + 4 * unit);
        }
        if (unit < units) {
            const Vector last = weights[0];
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p)
                Number::multiply_add_last(sum[p][0], sum[p][1], last, tile[p] + 4 * unit);
        }
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p, output += product.output_stride) {
            const Vector result = Number::sum(sum[p][0], sum[p][1]);
            Float32::store(output, product.adds ? result + Float32::load(output) : result);
        }
    }
    product.input = input;
    product.output = output;
    product.next = next;
}
#endif

#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
constexpr int64_t fp16_units = 16; // 32 channels

// Sums in fp16 to those in float32, or added to them.
template <int P, int H> void add_halves(const float16x8_t (&sum)[P][H], bool adds, char *output, int64_t stride) {
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p, output += stride) {
#pragma GCC unroll 2
        for (int h = 0; h < H; ++h) {
            const Vector halves[2] = {(Vector)vcvt_f32_f16(vget_low_f16(sum[p][h])),
                                      (Vector)vcvt_high_f32_f16(sum[p][h])};
            for (int i = 0; i < 2; ++i) {
                char *const to = output + (2 * h + i) * static_cast<int64_t>(sizeof(Vector));
                const Vector before = adds ? Float32::load(to) : Vector{};
                Float32::store(to, before + halves[i] * static_cast<float>(fp16_divisor));
            }
        }
    }
}

template <int P, int Q> __attribute__((noinline)) void multiply_blocks(Fp16, int64_t blocks, PositionProduct &product) {
    constexpr int H = Q / 2; // vectors of fp16
    const int64_t stride = product.stride, step = product.step;
    const char *input = product.input, *next = product.next;
    char *output = product.output;
    for (int64_t block = 0; block < blocks; ++block, input += P * stride, output += P * product.output_stride) {
        const RowAddresses<P> tile(input, stride);
        const auto *weights = reinterpret_cast<const float16_t *>(product.weights);
        for (int64_t begin = 0; begin < product.units; begin += fp16_units) {
            float16x8_t sum[P][H] = {};
            const int64_t end = smaller(begin + fp16_units, product.units);
            for (int64_t unit = begin; unit < end; ++unit, weights += 16 * H, next += step) {
                __builtin_prefetch(next, 0, 2);
                float16x8_t weight[2][H];
#pragma GCC unroll 4
                for (int h = 0; h < 2 * H; ++h)
                    weight[h / H][h % H] = vld1q_f16(weights + 8 * h);
#pragma GCC unroll 32
                for (int p = 0; p < P; ++p) {
                    const auto pair = Fp16::load_pair(tile[p] + 4 * unit);
#pragma GCC unroll 2
                    for (int h = 0; h < H; ++h) {
                        sum[p][h] = vfmaq_lane_f16(sum[p][h], weight[0][h], pair, 0);
                        sum[p][h] = vfmaq_lane_f16(sum[p][h], weight[1][h], pair, 1);
                    }
                }
            }
            add_halves(sum, product.adds || begin > 0, output, product.output_stride);
        }
    }
    product.input = input;
    product.output = output;
    product.next = next;
}
#endif

// All positions, each in blocks of P tiles and then `smaller` ones of a tile less.
template <class Number, int P, int Q>
void multiply_positions(const WinogradProduct &product, int64_t blocks, int64_t smaller) {
    const int64_t steps = product.position_count * (blocks + smaller) * product.units;
    PositionProduct part;
    part.stride = product.tile_stride;
    part.units = product.units;
    part.adds = product.adds;
    part.output_stride = product.output_tile_stride;
    part.next = product.next;
    part.step = (product.next_bytes + steps - 1) / steps;
    for (int i = 0; i < product.position_count; ++i) {
        const int64_t position = product.positions[i];
        part.weights = reinterpret_cast<const Vector *>(static_cast<const char *>(product.weights) +
                                                        i * product.weight_position_stride);
        part.input = static_cast<const char *>(product.input) + position * product.position_stride;
        part.output = reinterpret_cast<char *>(product.output) + position * product.output_position_stride;
        multiply_blocks<P, Q>(Number{}, blocks, part);
        if constexpr (P > 1)
            multiply_blocks<P - 1, Q>(Number{}, smaller, part);
    }
}

template <class Number, int P, int Q>
void multiply_blocks_of(int64_t tiles, const WinogradProduct &product, int64_t blocks, int64_t smaller) {
    if constexpr (P > 0) {
        if (tiles == P)
            return multiply_positions<Number, P, Q>(product, blocks, smaller);
        multiply_blocks_of<Number, P - 1, Q>(tiles, product, blocks, smaller);
    }
}

// In blocks of at most `most` tiles, of almost equal size, so that none is a small, slow remainder.
template <class Number, int most, int Q> void multiply_by(const WinogradProduct &product) {
    const int64_t blocks = (product.tiles + most - 1) / most, tiles = (product.tiles + blocks - 1) / blocks;
    const int64_t smaller = blocks * tiles - product.tiles;
    multiply_blocks_of<Number, most, Q>(tiles, product, blocks - smaller, smaller);
}

template <class Number, int Q> void multiply_of(const WinogradProduct &product) {
    if constexpr (Q > 0) {
        if (product.vectors != Q)
            return multiply_of<Number, Q / 2>(product);
        if constexpr (Number::rows(Q) > 0)
            multiply_by<Number, Number::rows(Q), Q>(product);
    }
}

template <class Number> void multiply(const WinogradProduct &product) { multiply_of<Number, widest>(product); }

void multiply_float32(const WinogradProduct &product) {
#if defined(__AVX512F__)
    if (product.vectors == 1)
        return multiply<Float32Pairs>(product);
#endif
    multiply<Float32>(product);
}

// Positions in the skipped column are zero.
template <int m, int skipped, int Q> void gather_row(const WinogradOutputRow row) {
    constexpr int n = m + 2;
    for (int64_t tile = 0; tile < row.tiles; ++tile) {
        const char *from = reinterpret_cast<const char *>(row.input) + tile * row.tile_stride;
        char *to = reinterpret_cast<char *>(row.output) + tile * m * row.column_stride;
        for (int vector = 0; vector < row.vectors; vector += Q, from += Q * sizeof(Vector), to += Q * sizeof(Vector)) {
#pragma GCC unroll 2
            for (int q = 0; q < Q; ++q) {
                Vector line[n], sums[m];
#pragma GCC unroll 6
                for (int v = 0; v < n; ++v) {
                    const char *position = from + v * row.position_stride + q * sizeof(Vector);
                    line[v] = v == skipped ? Vector{} : in_register(Float32::load(position));
                }
                Filtering<m>::output(line, sums);
#pragma GCC unroll 4
                for (int x = 0; x < m; ++x)
                    Float32::store(to + x * row.column_stride + q * sizeof(Vector), sums[x]);
            }
        }
    }
}

template <int m, int skipped> void gather_row_but(const WinogradOutputRow &row) {
    row.vectors % 2 == 0 ? gather_row<m, skipped, 2>(row) : gather_row<m, skipped, 1>(row);
}

template <int m> void gather_row_of(const WinogradOutputRow &row) {
    if (row.skipped_column < 0)
        return gather_row_but<m, -1>(row);
    row.skipped_column == 0 ? gather_row_but<m, 0>(row) : gather_row_but<m, m + 1>(row);
}

void transform_output_row(const WinogradOutputRow &row) {
    row.tile == 2 ? gather_row_of<2>(row) : gather_row_of<4>(row);
}

// Pixels of a column, Q vectors of channels.  The line of the skipped row is zero.  `whole`: there are m rows, and they
// have the same bias.
template <class Number, int m, int skipped, bool whole, int Q>
__attribute__((always_inline)) inline void finish_pixels(const WinogradOutputColumns &columns, const char *from,
                                                         int64_t bias, char *to) {
    constexpr int n = m + 2, vector_bytes = lane_count * sizeof(typename Number::Stored);
#pragma GCC unroll 2
    for (int q = 0; q < Q; ++q) {
        Vector line[n], results[m], pixels[m][1];
#pragma GCC unroll 6
        for (int u = 0; u < n; ++u) {
            const char *position = from + u * columns.line_stride + q * sizeof(Vector);
            line[u] = u == skipped ? Vector{} : in_register(Float32::load(position));
        }
        Filtering<m>::output(line, results);
#pragma GCC unroll 4
        for (int y = 0; y < m; ++y) {
            pixels[y][0] = results[y] + Float32::load(columns.bias[whole ? 0 : y] + bias + q * lane_count);
            if (columns.adds && (whole || y < columns.rows))
                pixels[y][0] += Number::load(to + y * columns.row_stride + q * vector_bytes);
        }
        activate(pixels, columns.activation, columns.slope);
#pragma GCC unroll 4
        for (int y = 0; y < m; ++y) {
            if (whole || y < columns.rows)
                Number::store(to + y * columns.row_stride + q * vector_bytes, pixels[y][0]);
        }
    }
}

template <class Number, int m, int skipped, bool whole, int Q>
void finish_columns(const WinogradOutputColumns columns) {
    constexpr int vector_bytes = lane_count * sizeof(typename Number::Stored);
    constexpr int64_t distance = 2 * m; // columns; what the tensor's last users left beyond the second cache
    for (int64_t x = 0; x < columns.columns; ++x) {
        const char *from = reinterpret_cast<const char *>(columns.input) + x * columns.column_stride;
        char *to = static_cast<char *>(columns.output) + x * columns.pixel_stride;
        const bool first = columns.first_column && x == 0, last = columns.last_column && x == columns.columns - 1;
        const int64_t bias = (first ? 0 : last ? 2 : 1) * columns.bias_stride;
        if (x + distance < columns.columns) {
#pragma GCC unroll 4
            for (int y = 0; y < m; ++y) {
                if (whole || y < columns.rows)
                    __builtin_prefetch(to + y * columns.row_stride + distance * columns.pixel_stride, 1);
            }
        }
        for (int vector = 0; vector < columns.vectors; vector += Q) {
            finish_pixels<Number, m, skipped, whole, Q>(columns, from + vector * sizeof(Vector),
                                                        bias + vector * lane_count, to + vector * vector_bytes);
        }
    }
}

template <class Number, int m, int skipped> void finish_columns_but(const WinogradOutputColumns &columns) {
    bool whole = columns.rows >= m;
    for (int y = 1; y < m; ++y)
        whole = whole && columns.bias[y] == columns.bias[0];
    if (!whole)
        return finish_columns<Number, m, skipped, false, 1>(columns);
    columns.vectors % 2 == 0 ? finish_columns<Number, m, skipped, true, 2>(columns)
                             : finish_columns<Number, m, skipped, true, 1>(columns);
}

template <class Number, int m> void finish_columns_of(const WinogradOutputColumns &columns) {
    if (columns.skipped_row < 0)
        return finish_columns_but<Number, m, -1>(columns);
    columns.skipped_row == 0 ? finish_columns_but<Number, m, 0>(columns)
                             : finish_columns_but<Number, m, m + 1>(columns);
}

void transform_output_columns(const WinogradOutputColumns &columns) {
#if defined(UF_BF16_PRODUCTS)
    if (columns.output_is_bf16)
        return columns.tile == 2 ? finish_columns_of<Bf16, 2>(columns) : finish_columns_of<Bf16, 4>(columns);
#endif
    columns.tile == 2 ? finish_columns_of<Float32, 2>(columns) : finish_columns_of<Float32, 4>(columns);
}

// Two rows of positions: the `outer` ones, which are rows of taps, or two whose factors differ in the sign of the
// middle one.  Both read taps once.  The kernels have `side` taps in a row, of which the first stands in column
// `first`.
template <int m, int side, int skipped_column, int Q, bool outer>
void transform_kernels(const WinogradWeights weights) {
    constexpr int n = m + 2, first = skipped_column == 0;
    // Where the kernel is 2 x 2, its middle row stands in row 0 or 1 of it, and the other row is the first or the last.
    const int other = weights.skipped_row == 0, middle = 1 - other;
    const auto factor = [&](int y) { return Vector{} + Filtering<m>::kernel[weights.row][y]; };
    const Vector other_factor = factor(2 * other), middle_factor = factor(1), last_factor = factor(2);
    const auto *taps = reinterpret_cast<const Vector *>(weights.weights);
    int64_t done = 0;
    for (int64_t unit = 0; unit < weights.units; ++unit, taps += side * side * Q, done += Q * sizeof(Vector)) {
#pragma GCC unroll 1 // the library has to stay small
        for (int q = 0; q < Q; ++q) {
            Vector lines[2][3] = {};
#pragma GCC unroll 3
            for (int x = 0; x < side; ++x) {
                const auto tap = [&](int y) { return in_register(taps[(y * side + x) * Q + q]); };
                if constexpr (outer) {
                    lines[0][first + x] = tap(0);
                    lines[1][first + x] = tap(side - 1);
                } else {
                    Vector even = other_factor * tap(other);
                    if constexpr (side == 3)
                        even += last_factor * tap(2);
                    const Vector odd = middle_factor * tap(middle);
                    lines[0][first + x] = even + odd;
                    lines[1][first + x] = even - odd;
                }
            }
#pragma GCC unroll 2
            for (int row = 0; row < 2; ++row) {
                if (outer && weights.outputs[row] == nullptr)
                    continue;
                Vector positions[n];
                Filtering<m>::weights(lines[row], positions);
                char *const to = reinterpret_cast<char *>(weights.outputs[row]) + done + q * sizeof(Vector);
#pragma GCC unroll 6
                for (int v = 0; v < n; ++v) {
                    if (v != skipped_column)
                        Float32::store(to + (v - first) * weights.position_stride, positions[v]);
                }
            }
        }
    }
}

template <int m, int side, int skipped_column, int Q> void transform_kernels_of(const WinogradWeights &weights) {
    if constexpr (Q > 0) {
        if (weights.vectors != Q)
            return transform_kernels_of<m, side, skipped_column, Q / 2>(weights);
        weights.row == 0 ? transform_kernels<m, side, skipped_column, Q, true>(weights)
                         : transform_kernels<m, side, skipped_column, Q, false>(weights);
    }
}

template <int m> void transform_weights_of(const WinogradWeights &weights) {
    if (weights.skipped_row < 0)
        return transform_kernels_of<m, 3, -1, widest>(weights);
    weights.skipped_column == 0 ? transform_kernels_of<m, 2, 0, widest>(weights)
                                : transform_kernels_of<m, 2, m + 1, widest>(weights);
}

void transform_weights(const WinogradWeights &weights) {
    weights.tile == 2 ? transform_weights_of<2>(weights) : transform_weights_of<4>(weights);
}

} // namespace

const WinogradKernels UF_JOIN(winograd_kernels_, UF_ISA) = {
    transform_input_columns, transform_input_row,      multiply_float32,
#if defined(UF_BF16_PRODUCTS)
    multiply<Bf16>,
#else
    nullptr,
#endif
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
    multiply<Fp16>,
#else
    nullptr,
#endif
    transform_output_row,    transform_output_columns, transform_weights,
};

} // namespace uf
