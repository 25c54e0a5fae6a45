// Compiled once per instruction set, as kernels.cpp is.
//
// One-dimensional filtering F(m, 3) evaluates polynomials at m + 1 points and at infinity: output = A' ((G g) * (B'
// d)). Two-dimensional filtering does so along both axes.  For m = 4 the points are 0, +-sqrt(2), +-sqrt(1/2): half the
// rounding error of the usual 0, +-1, +-2 at the same cost (measured: 4.4e-7 against 9.0e-7 at 16 channels, the direct
// sum has 1.6e-7).

#include "vector.h"

namespace uf {
namespace {

template <int m> struct Filtering;

// Points 0, 1, -1, infinity.
template <> struct Filtering<2> {
    static void input(const Vector (&d)[4], Vector (&v)[4]) {
        v[0] = d[0] - d[2];
        v[1] = d[2] + d[1];
        v[2] = d[2] - d[1];
        v[3] = d[3] - d[1];
    }
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
    static void weights(const Vector (&g)[3], Vector (&u)[6]) {
        const Vector even_a = (1.0F / 6.0F) * g[0] + (1.0F / 3.0F) * g[2], odd_a = (a / 6.0F) * g[1];
        const Vector even_b = (2.0F / 3.0F) * g[0] + (1.0F / 3.0F) * g[2], odd_b = (b / 1.5F) * g[1];
        u[0] = g[0];
        u[1] = even_a + odd_a;
        u[2] = even_a - odd_a;
        u[3] = -(even_b + odd_b);
        u[4] = -(even_b - odd_b);
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

// The window of one tile, one vector of channels.  `whole`: all of its pixels exist.
template <class Input, class Output, int m, bool whole>
void transform_window(const WinogradInput &row, const char *input, int64_t columns, char *output) {
    constexpr int n = m + 2;
    Vector transformed[n][n]; // [column of the window][row of positions]
#pragma GCC unroll 6
    for (int x = 0; x < n; ++x) {
        Vector column[n];
#pragma GCC unroll 6
        for (int y = 0; y < n; ++y) {
            const bool exists = whole || (y < row.rows && x < columns);
            column[y] = exists ? Input::load(input + y * row.row_stride + x * row.pixel_stride) : Vector{};
        }
        Filtering<m>::input(column, transformed[x]);
    }
#pragma GCC unroll 6
    for (int u = 0; u < n; ++u) {
        Vector line[n], positions[n];
#pragma GCC unroll 6
        for (int x = 0; x < n; ++x)
            line[x] = transformed[x][u];
        Filtering<m>::input(line, positions);
#pragma GCC unroll 6
        for (int v = 0; v < n; ++v)
            Output::store(output + (u * n + v) * row.position_stride, positions[v]);
    }
}

// The pixels that the window of a tile further on adds to that at `input`; so far that they arrive in time.
template <int m> inline void prefetch_window(const WinogradInput &row, const char *input) {
    constexpr int distance = 4; // tiles
#pragma GCC unroll 6
    for (int y = 0; y < m + 2; ++y) {
#pragma GCC unroll 4
        for (int x = 2; x < m + 2; ++x)
            __builtin_prefetch(input + y * row.row_stride + (distance * m + x) * row.pixel_stride);
    }
}

template <class Input, class Output, int m> void transform_windows(const WinogradInput &row) {
    for (int64_t tile = 0; tile < row.tiles; ++tile) {
        const char *input = static_cast<const char *>(row.input) + tile * m * row.pixel_stride;
        char *output = static_cast<char *>(row.output) + tile * row.tile_stride;
        const int64_t columns = row.columns - tile * m;
        const bool whole = row.rows >= m + 2 && columns >= m + 2;
        for (int vector = 0; vector < row.vectors; ++vector) {
            if (whole) {
                if (row.prefetches)
                    prefetch_window<m>(row, input);
                transform_window<Input, Output, m, true>(row, input, columns, output);
            } else {
                transform_window<Input, Output, m, false>(row, input, columns, output);
            }
            input += lane_count * sizeof(typename Input::Stored);
            output += lane_count * sizeof(typename Output::Stored);
        }
    }
}

template <class Input, class Output> void transform_input_of(const WinogradInput &row) {
    if (row.tile == 2)
        return transform_windows<Input, Output, 2>(row);
    transform_windows<Input, Output, 4>(row);
}

void transform_input(const WinogradInput &row) {
#if defined(__AVX512BF16__)
    if (row.output_is_bf16)
        return row.input_is_bf16 ? transform_input_of<Bf16, Bf16>(row) : transform_input_of<Float32, Bf16>(row);
    if (row.input_is_bf16)
        return transform_input_of<Bf16, Float32>(row);
#endif
    transform_input_of<Float32, Float32>(row);
}

// Blocks of P tiles x Q vectors at one position, one after the other, each in registers.
template <class Number, int P, int Q>
void multiply_blocks(int64_t blocks, const char *input, int64_t stride, const Vector *first_weights, int64_t units,
                     bool adds, char *output, int64_t output_stride) {
    for (int64_t block = 0; block < blocks; ++block, input += P * stride) {
        Vector sum[P][Q] = {};
        if (adds) {
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q)
                    sum[p][q] = Float32::load(output + p * output_stride + q * sizeof(Vector));
            }
        }
        // As in conv_block: base + {0, 1, 2, 3} * stride fits the addressing modes.
        const char *base[(P + 3) / 4];
#pragma GCC unroll 8
        for (int g = 0; g < (P + 3) / 4; ++g)
            base[g] = input + 4 * g * stride;
        const Vector *weights = first_weights;
        for (int64_t unit = 0; unit < units; ++unit, weights += Q) {
            Vector weight[Q];
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                weight[q] = weights[q];
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q)
                    Number::multiply_add(sum[p][q], weight[q], base[p / 4] + p % 4 * stride + 4 * unit);
            }
        }
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p, output += output_stride) {
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                Float32::store(output + q * sizeof(Vector), sum[p][q]);
        }
    }
}

template <class Number, int P, int Q>
void multiply_blocks_of(int64_t tiles, int64_t blocks, const char *input, int64_t stride, const Vector *weights,
                        int64_t units, bool adds, char *output, int64_t output_stride) {
    if constexpr (P > 0) {
        if (tiles == P)
            return multiply_blocks<Number, P, Q>(blocks, input, stride, weights, units, adds, output, output_stride);
        multiply_blocks_of<Number, P - 1, Q>(tiles, blocks, input, stride, weights, units, adds, output, output_stride);
    }
}

// Part i of n of what is read next: the multiply-adds of a position leave the memory at rest.
inline void prefetch_next(const WinogradProduct &product, int64_t i, int64_t n) {
    constexpr int64_t line = 64;
    const int64_t lines = product.next_bytes / line;
    for (const char *at = product.next + lines * i / n * line; at < product.next + lines * (i + 1) / n * line;
         at += line)
        __builtin_prefetch(at, 0, 2);
}

// In blocks of at most `most` tiles, of almost equal size, so that none is a small, slow remainder.
template <class Number, int most, int Q> void multiply_by(const WinogradProduct &product) {
    const int64_t blocks = (product.tiles + most - 1) / most;
    const int64_t tiles = product.tiles / blocks, larger = product.tiles % blocks; // blocks with a tile more
    for (int i = 0; i < product.position_count; ++i) {
        const int64_t position = product.positions[i];
        prefetch_next(product, i, product.position_count);
        const auto *weights = reinterpret_cast<const Vector *>(static_cast<const char *>(product.weights) +
                                                               i * product.weight_position_stride);
        const char *input = static_cast<const char *>(product.input) + position * product.position_stride;
        char *output = reinterpret_cast<char *>(product.output) + position * product.output_position_stride;
        multiply_blocks_of<Number, most, Q>(tiles + 1, larger, input, product.tile_stride, weights, product.units,
                                            product.adds, output, product.output_tile_stride);
        const int64_t done = larger * (tiles + 1);
        multiply_blocks_of<Number, most, Q>(tiles, blocks - larger, input + done * product.tile_stride,
                                            product.tile_stride, weights, product.units, product.adds,
                                            output + done * product.output_tile_stride, product.output_tile_stride);
    }
}

template <class Number, int Q> void multiply_of(const WinogradProduct &product) {
    if constexpr (Q > 0) {
        if (product.vectors != Q)
            return multiply_of<Number, Q / 2>(product);
        if (product.units <= few_units)
            return multiply_by<Number, few_unit_rows(Q), Q>(product);
        multiply_by<Number, block_rows(Q), Q>(product);
    }
}

template <class Number> void multiply(const WinogradProduct &product) { multiply_of<Number, widest>(product); }

// One tile, one vector of channels.  Positions in the skipped row and column are zero.  `inner`: all pixels of the tile
// exist and have the same bias.
template <class Number, int m, int skipped_row, int skipped_column, bool inner>
void finish_tile(const WinogradOutput &row, int64_t tile, int64_t vector) {
    constexpr int n = m + 2;
    const char *input = reinterpret_cast<const char *>(row.input) + tile * row.tile_stride + vector * sizeof(Vector);
    Vector transformed[n][m]; // [row of positions][column of the tile]
#pragma GCC unroll 6
    for (int u = 0; u < n; ++u) {
        Vector line[n];
#pragma GCC unroll 6
        for (int v = 0; v < n; ++v) {
            const bool skipped = u == skipped_row || v == skipped_column;
            line[v] = skipped ? Vector{} : Float32::load(input + (u * n + v) * row.position_stride);
        }
        Filtering<m>::output(line, transformed[u]);
    }
    const int64_t columns = row.columns - tile * m;
    char *output = static_cast<char *>(row.output) + tile * m * row.pixel_stride +
                   vector * lane_count * static_cast<int64_t>(sizeof(typename Number::Stored));
#pragma GCC unroll 4
    for (int x = 0; x < m; ++x) {
        Vector column[n], pixels[m][1];
#pragma GCC unroll 6
        for (int u = 0; u < n; ++u)
            column[u] = transformed[u][x];
        Vector results[m];
        Filtering<m>::output(column, results);
        if (!inner && x >= columns)
            break;
        const bool first = !inner && row.first_column && tile == 0 && x == 0, last = !inner && x == columns - 1;
        const int64_t bias = (first ? 0 : last ? 2 : 1) * row.bias_stride + vector * lane_count;
        char *to = output + x * row.pixel_stride;
#pragma GCC unroll 4
        for (int y = 0; y < m; ++y) {
            pixels[y][0] = results[y] + Float32::load(row.bias[inner ? 0 : y] + bias);
            if (row.adds && (inner || y < row.rows))
                pixels[y][0] += Number::load(to + y * row.row_stride);
        }
        activate(pixels, row.activation, row.slope);
#pragma GCC unroll 4
        for (int y = 0; y < m; ++y) {
            if (inner || y < row.rows)
                Number::store(to + y * row.row_stride, pixels[y][0]);
        }
    }
}

// The pixels of a tile further on, which the tensor's last readers and writers left beyond the second cache.
template <int m> inline void prefetch_pixels(const WinogradOutput &row, int64_t tile) {
    constexpr int64_t distance = 2; // tiles
    if (tile + distance >= row.tiles)
        return;
    const char *pixel = static_cast<const char *>(row.output) + (tile + distance) * m * row.pixel_stride;
#pragma GCC unroll 4
    for (int x = 0; x < m; ++x, pixel += row.pixel_stride) {
#pragma GCC unroll 4
        for (int y = 0; y < m; ++y)
            __builtin_prefetch(pixel + y * row.row_stride, 1);
    }
}

template <class Number, int m, int skipped_row, int skipped_column> void finish_tiles(const WinogradOutput &row) {
    bool whole_rows = row.rows >= m;
    for (int y = 1; y < m; ++y)
        whole_rows = whole_rows && row.bias[y] == row.bias[0];
    for (int64_t tile = 0; tile < row.tiles; ++tile) {
        const int64_t columns = row.columns - tile * m;
        const bool same_bias = row.bias_stride == 0 || ((tile > 0 || !row.first_column) && columns > m);
        const bool inner = whole_rows && columns >= m && same_bias;
        prefetch_pixels<m>(row, tile);
        for (int vector = 0; vector < row.vectors; ++vector) {
            if (inner)
                finish_tile<Number, m, skipped_row, skipped_column, true>(row, tile, vector);
            else
                finish_tile<Number, m, skipped_row, skipped_column, false>(row, tile, vector);
        }
    }
}

template <class Number, int m> void finish_of(const WinogradOutput &row) {
    if (row.skipped_row < 0)
        return finish_tiles<Number, m, -1, -1>(row);
    if (row.skipped_row == 0) {
        return row.skipped_column == 0 ? finish_tiles<Number, m, 0, 0>(row) : finish_tiles<Number, m, 0, m + 1>(row);
    }
    row.skipped_column == 0 ? finish_tiles<Number, m, m + 1, 0>(row) : finish_tiles<Number, m, m + 1, m + 1>(row);
}

void transform_output(const WinogradOutput &row) {
#if defined(__AVX512BF16__)
    if (row.output_is_bf16)
        return row.tile == 2 ? finish_of<Bf16, 2>(row) : finish_of<Bf16, 4>(row);
#endif
    row.tile == 2 ? finish_of<Float32, 2>(row) : finish_of<Float32, 4>(row);
}

// One unit, one vector of channels; `stride` vectors from tap to tap.
template <int m, int skipped_row, int skipped_column>
void transform_kernel(const Vector *taps, int64_t stride, char *output, int64_t position_stride) {
    constexpr int n = m + 2, side = skipped_row < 0 ? 3 : 2;
    constexpr int row = skipped_row == 0, column = skipped_column == 0; // of the kernel's first tap
    Vector transformed[3][n] = {};                                      // [column of the kernel][row of positions]
#pragma GCC unroll 3
    for (int x = 0; x < side; ++x) {
        Vector line[3] = {};
#pragma GCC unroll 3
        for (int y = 0; y < side; ++y)
            line[y + row] = taps[(y * side + x) * stride];
        Filtering<m>::weights(line, transformed[x + column]);
    }
#pragma GCC unroll 6
    for (int u = 0; u < n; ++u) {
        if (u == skipped_row)
            continue;
        const Vector line[3] = {transformed[0][u], transformed[1][u], transformed[2][u]};
        Vector positions[n];
        Filtering<m>::weights(line, positions);
#pragma GCC unroll 6
        for (int v = 0; v < n; ++v) {
            if (v == skipped_column)
                continue;
            Float32::store(output, positions[v]);
            output += position_stride;
        }
    }
}

template <int m, int skipped_row, int skipped_column> void transform_kernels(const WinogradWeights &weights) {
    constexpr int taps = skipped_row < 0 ? 9 : 4;
    const auto *from = reinterpret_cast<const Vector *>(weights.weights);
    char *to = reinterpret_cast<char *>(weights.output);
    for (int64_t unit = 0; unit < weights.units; ++unit, from += taps * weights.vectors) {
        for (int vector = 0; vector < weights.vectors; ++vector, to += sizeof(Vector)) {
            transform_kernel<m, skipped_row, skipped_column>(from + vector, weights.vectors, to,
                                                             weights.position_stride);
        }
    }
}

template <int m> void transform_weights_of(const WinogradWeights &weights) {
    constexpr int last = m + 1;
    if (weights.skipped_row < 0)
        return transform_kernels<m, -1, -1>(weights);
    if (weights.skipped_row == 0)
        return weights.skipped_column == 0 ? transform_kernels<m, 0, 0>(weights)
                                           : transform_kernels<m, 0, last>(weights);
    weights.skipped_column == 0 ? transform_kernels<m, last, 0>(weights) : transform_kernels<m, last, last>(weights);
}

void transform_weights(const WinogradWeights &weights) {
    weights.tile == 2 ? transform_weights_of<2>(weights) : transform_weights_of<4>(weights);
}

} // namespace

const WinogradKernels UF_JOIN(winograd_kernels_, UF_ISA) = {
    transform_input,  multiply<Float32>,
#if defined(__AVX512BF16__)
    multiply<Bf16>,
#else
    nullptr,
#endif
    transform_output, transform_weights,
};

} // namespace uf
