// The vectors that kernels compute with, for the sources that are compiled once per instruction set, and only for
// those: each of them gets a copy of its own.
#pragma once

#include "isa_name.h"
#include "kernels.h"
#include "lane_orders.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define UF_BF16_PRODUCTS 1 // sums of float32
#endif
// With AVX-512 an Ice Lake loads one vector of 512 bits a cycle, or one unit for all lanes, beside 1.6 multiply-adds. A
// Zen 4 (with BF16) loads as often as it multiplies, but an instruction that loads a unit for all lanes takes half a
// multiply-add's place; one that multiplies by a unit in memory takes none.
#if defined(__AVX512BF16__)
#define UF_UNITS_IN_MEMORY 1
#elif defined(__AVX512F__)
#define UF_FEW_LOADS 1
#endif

namespace uf {
namespace {

// `widest`: vectors of outputs that a unit, once loaded, is multiplied with.  With AVX-512 4 instead of 2 take 0.93 of
// the time of `relunet64` on an Ice Lake, 0.97 on a Zen 4.
#if defined(__AVX512F__)
constexpr int lane_count = 16, register_count = 32, widest = 4;
#elif defined(__AVX2__)
constexpr int lane_count = 8, register_count = 16, widest = 2;
#elif defined(__aarch64__)
constexpr int lane_count = 4, register_count = 32, widest = 4;
#else
constexpr int lane_count = 4, register_count = 16, widest = 2;
#endif

typedef float Vector __attribute__((vector_size(lane_count * sizeof(float)), may_alias));

// Rows in a block of Q vectors each: what the registers hold beside Q weights, a broadcast and a spare one.  Beyond 16,
// more rows per load of weights no longer pay (Zen 4: 24 rows take 1.005 of the time of `relunet16`).
constexpr int block_rows(int vectors) {
    const int fitting = (register_count - vectors - 2) / vectors;
    return fitting < 16 ? fitting : 16;
}

// The same value, in a register.  Else g++ loads it again for every use: with few loads transforms along rows took 1.4
// times as long.
inline Vector in_register(Vector value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#endif
    return value;
}

// a > b ? a : b, in one instruction where there is one that takes b if either is NaN.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_max_ps(0xFFFF, (__m512)a, (__m512)b); // g++ 12 warns about the form without a mask
#elif defined(__AVX2__)
    return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// Addresses of a block's P rows (pixels or tiles), from every fourth one: base + {0, 1, 2, 3} * stride fits the
// addressing modes.
template <int P> struct RowAddresses {
    const char *base[(P + 3) / 4];
    const int64_t stride;

    RowAddresses(const void *first, int64_t row_stride) : stride(row_stride) {
#pragma GCC unroll 8
        for (int g = 0; g < (P + 3) / 4; ++g)
            base[g] = static_cast<const char *>(first) + 4 * g * stride;
    }
    const char *operator[](int row) const { return base[row / 4] + row % 4 * stride; }
};

struct Float32 {
    typedef float Stored;
    static constexpr int rows(int vectors) { return block_rows(vectors); }
    static Vector load(const void *from) { return *static_cast<const Vector *>(from); }
    static void store(void *to, Vector value) { *static_cast<Vector *>(to) = value; }
    static Vector multiply(Vector weights, const void *unit) { return weights * *static_cast<const float *>(unit); }
    static void multiply_add(Vector &sum, Vector weights, const void *unit) {
        sum += weights * *static_cast<const float *>(unit);
    }
};

#if defined(UF_BF16_PRODUCTS)
struct Bf16 {
    typedef uint16_t Stored;
    static constexpr int rows(int vectors) { return block_rows(vectors); }
    typedef uint16_t Halves __attribute__((vector_size(lane_count * sizeof(uint16_t)), may_alias));
    typedef uint32_t Bits __attribute__((vector_size(lane_count * sizeof(uint32_t))));
    static Vector load(const void *from) {
        return (Vector)(__builtin_convertvector(*static_cast<const Halves *>(from), Bits) << 16);
    }
    static void store(void *to, Vector value) {
#if defined(__AVX512BF16__)
        *static_cast<Halves *>(to) = (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
        *static_cast<Halves *>(to) = (Halves)vcvt_bf16_f32((float32x4_t)value);
#endif
    }
    static Vector multiply(Vector weights, const void *unit) {
        Vector sum = {};
        multiply_add(sum, weights, unit);
        return sum;
    }
    static void multiply_add(Vector &sum, Vector weights, const void *unit) {
#if defined(__AVX512BF16__)
        const __m512i pair = _mm512_set1_epi32(*static_cast<const int *>(unit));
        sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)pair);
#else
        const uint32x2_t pair = {*static_cast<const uint32_t *>(unit), 0};
        sum = (Vector)vbfdotq_lane_f32((float32x4_t)sum, (bfloat16x8_t)weights, (bfloat16x4_t)pair, 0);
#endif
    }
};
#endif

#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
// Of Winograd's form: Products::fp16.
struct Fp16 {
    typedef uint16_t Stored;
    // As block_rows, with half as many vectors, of which each takes two of weights.
    static constexpr int rows(int vectors) {
        const int halves = vectors / 2, fitting = halves == 0 ? 0 : (register_count - 2 * halves - 4) / halves;
        return fitting < 24 ? fitting : 24;
    }
    static void store(void *to, Vector value) {
        constexpr float factor = 1.0F / fp16_divisor;
        vst1_f16(static_cast<float16_t *>(to), vcvt_f16_f32((float32x4_t)(value * factor)));
    }
    static float16x4_t load_pair(const void *unit) {
        uint32_t bits;
        __builtin_memcpy(&bits, unit, sizeof bits);
        return (float16x4_t)uint32x2_t{bits, 0};
    }
};
#endif

// Activation in place, the decision taken once for the block.  NaN passes through ReLU, as in PyTorch.
template <int P, int Q> inline void activate(Vector (&sum)[P][Q], KernelActivation activation, float slope) {
    if (activation == KernelActivation::none)
        return;
    if (activation == KernelActivation::relu) {
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
                sum[p][q] = larger(Vector{}, sum[p][q]);
        }
        return;
    }
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
            sum[p][q] = sum[p][q] < 0.0F ? sum[p][q] * slope : sum[p][q];
    }
}

} // namespace

extern const WinogradKernels UF_JOIN(winograd_kernels_, UF_ISA); // of winograd_kernels.cpp

} // namespace uf
