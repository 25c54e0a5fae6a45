// Compiled once per instruction set, with -DUF_ISA=portable|avx2|avx512|avx512_bf16|neon|neon_fp16|neon_bf16 and the
// flags for it.
//
// The microkernel is a block of P output pixels x Q vectors of output channels that lives in registers while all taps
// and units stream past: per unit, Q loads of weights, P broadcasts of input, P * Q multiply-adds.

#include "vector.h"

namespace uf {
namespace {

template <class Number, int P, int Q> inline void store(const Vector (&sum)[P][Q], char *output, int64_t stride) {
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p, output += stride) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            Number::store(output + q * lane_count * sizeof(typename Number::Stored), sum[p][q]);
        }
    }
}

template <class Number, int P, int Q> void conv_block(const ConvRow &row, int64_t first) {
    Vector sum[P][Q];
    const float *bias_first = first == 0 ? row.bias_first : row.bias;
    const float *bias_last = first + P == row.pixels ? row.bias_last : row.bias;
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
        const float *bias = p == 0 ? bias_first : p == P - 1 ? bias_last : row.bias;
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
            sum[p][q] = Float32::load(bias + q * lane_count);
    }

    for (int t = 0; t < row.tap_count; ++t) {
        const Tap &tap = row.taps[t];
        const Vector *weights = static_cast<const Vector *>(tap.weights);
        const RowAddresses<P> pixel(static_cast<const char *>(tap.input) + first * tap.pixel_stride, tap.pixel_stride);
        for (int64_t unit = 0; unit < tap.units; ++unit, weights += Q) {
            Vector weight[Q];
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                weight[q] = weights[q];
#pragma GCC unroll 32
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q) {
                    Number::multiply_add(sum[p][q], weight[q], pixel[p] + 4 * unit);
                }
            }
        }
    }

    activate(sum, row.activation, row.slope);
    char *output = static_cast<char *>(row.output) + first * row.output_stride;
#if defined(UF_BF16_PRODUCTS)
    if (row.output_is_bf16)
        return store<Bf16>(sum, output, row.output_stride);
#endif
    store<Float32>(sum, output, row.output_stride);
}

template <class Number, int P, int Q> void conv_block_of(const ConvRow &row, int64_t first, int64_t pixels) {
    if constexpr (P > 0) {
        if (pixels == P)
            return conv_block<Number, P, Q>(row, first);
        conv_block_of<Number, P - 1, Q>(row, first, pixels);
    }
}

// A row falls into blocks of almost equal size, so that none is a small, slow remainder.
template <class Number, int Q> void conv_row_of(const ConvRow &row) {
    if constexpr (Q > 0) {
        if (row.vectors != Q)
            return conv_row_of<Number, Q / 2>(row);
        constexpr int most = block_rows(Q);
        const int64_t blocks = (row.pixels + most - 1) / most;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = row.pixels * block / blocks, end = row.pixels * (block + 1) / blocks;
            conv_block_of<Number, most, Q>(row, first, end - first);
        }
    }
}

template <class Number> void conv_row(const ConvRow &row) { conv_row_of<Number, widest>(row); }

inline Vector larger_or_nan(Vector a, Vector b) { return a != a ? a : larger(a, b); }

template <class Number> void pool_row(const PoolRow &row) {
    for (int64_t pixel = 0; pixel < row.pixels; ++pixel) {
        const char *upper = static_cast<const char *>(row.upper) + 2 * pixel * row.pixel_stride;
        const char *lower = static_cast<const char *>(row.lower) + 2 * pixel * row.pixel_stride;
        char *output = static_cast<char *>(row.output) + pixel * row.pixel_stride;
        for (int vector = 0; vector < row.vectors; ++vector) {
            const int64_t left = vector * lane_count * static_cast<int64_t>(sizeof(typename Number::Stored));
            const int64_t right = left + row.pixel_stride;
            Number::store(output + left,
                          larger_or_nan(larger_or_nan(Number::load(upper + left), Number::load(upper + right)),
                                        larger_or_nan(Number::load(lower + left), Number::load(lower + right))));
        }
    }
}

// Lane i: the sum of the lanes of vector i, of as many vectors as there are lanes.
template <int count> inline Vector sum_lanes(const Vector (&vectors)[count]) {
    if constexpr (count == 1) {
        return vectors[0];
    } else {
        Vector halves[count / 2];
#pragma GCC unroll 8
        for (int i = 0; i < count / 2; ++i) {
            const Vector low = vectors[2 * i], high = vectors[2 * i + 1];
            halves[i] = __builtin_shufflevector(low, high, UF_EVEN) + __builtin_shufflevector(low, high, UF_ODD);
        }
        return sum_lanes(halves);
    }
}

void logit_row(const LogitRow &row) {
    const auto *weights = reinterpret_cast<const Vector *>(row.weights);
    const auto *features = reinterpret_cast<const Vector *>(row.features);
    for (int64_t first = 0; first < row.pixels; first += lane_count) {
        Vector sum[lane_count];
#pragma GCC unroll 16
        for (int i = 0; i < lane_count; ++i) {
            const int64_t pixel = first + i < row.pixels ? first + i : row.pixels - 1;
            const Vector *from = features + pixel * row.vectors;
            sum[i] = from[0] * weights[0];
            for (int vector = 1; vector < row.vectors; ++vector)
                sum[i] += from[vector] * weights[vector];
        }
        *reinterpret_cast<Vector *>(row.logits + first) = sum_lanes(sum) + row.bias;
    }
}

const KernelTable table = {
    UF_STRING(UF_ISA),
    lane_count,
    widest,
    conv_row<Float32>,
#if defined(UF_BF16_PRODUCTS)
    conv_row<Bf16>,
    pool_row<Float32>,
    pool_row<Bf16>,
#else
    nullptr,
    pool_row<Float32>,
    nullptr,
#endif
    logit_row,
    &UF_JOIN(winograd_kernels_, UF_ISA),
};

} // namespace

const KernelTable *UF_JOIN(kernels_, UF_ISA)() { return &table; }

} // namespace uf
