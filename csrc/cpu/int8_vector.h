// The vectors of the int8 kernels, for the sources that are compiled once per instruction set, and only for those: each
// of them gets a copy of its own.
#pragma once

#include "int8_kernels.h"
#include "isa_name.h"
#include "lane_orders.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && !defined(UF_ISA_portable)
#define UF_NEON 1
#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
#define UF_NEON_DOT 1 // sums of four products of bytes in one instruction
#endif
#include <arm_neon.h>
#endif

namespace uf {
namespace {

#if defined(__AVX512VNNI__)
constexpr int lane_count = 16, most_vectors = 6;
#elif defined(__AVX512BW__)
constexpr int lane_count = 16, most_vectors = 4;
#elif defined(__AVX2__)
constexpr int lane_count = 8, most_vectors = 2;
#elif defined(UF_NEON_DOT)
constexpr int lane_count = 4, most_vectors = 6;
#elif defined(UF_NEON)
constexpr int lane_count = 4, most_vectors = 4;
#else
constexpr int lane_count = 4, most_vectors = 2;
#endif

typedef int32_t Ints __attribute__((vector_size(lane_count * 4), may_alias));
typedef uint32_t Words __attribute__((vector_size(lane_count * 4), may_alias));
typedef float Floats __attribute__((vector_size(lane_count * 4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(lane_count * 4), may_alias));
// The same at any address of a pixel.
typedef Ints LooseInts __attribute__((aligned(4)));
typedef Words LooseWords __attribute__((aligned(4)));
typedef Floats LooseFloats __attribute__((aligned(4)));

inline Ints splat(int32_t value) { return Ints{} + value; }
inline Floats splat(float value) { return Floats{} + value; }

// Between a number and the byte 128 above it, four in a lane.
inline Ints flip(Ints bytes) { return bytes ^ static_cast<int32_t>(0x80808080U); }

// uint8 pixels times int8 weights.
struct ByteProducts {
    static constexpr bool interleaves = true, may_overflow = false;
    typedef Ints Sum;
    typedef int32_t Bias;
#if defined(__AVX2__)
    typedef Ints Pixels;
    typedef Ints Weights;
    static constexpr bool centred = false;
    static Pixels load(const char *from) { return *reinterpret_cast<const LooseInts *>(from); }
    static Weights broadcast(const int32_t *word) { return splat(*word); }
#if defined(__AVX512VNNI__)
    static constexpr int largest_pair = any_pair;
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
        sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)pixels, (__m512i)weights);
    }
#elif defined(__AVXVNNI__)
    static constexpr int largest_pair = any_pair;
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
        sum = (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)pixels, (__m256i)weights);
    }
#else
    // The instruction that multiplies bytes saturates the sum of two products, the next one adds two such sums.  16
    // bits hold 128 * 255 of either sign.
    static constexpr int largest_pair = 128;
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
#if defined(__AVX512BW__)
        const __m512i pairs = _mm512_maddubs_epi16((__m512i)pixels, (__m512i)weights);
        sum += (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
        const __m256i pairs = _mm256_maddubs_epi16((__m256i)pixels, (__m256i)weights);
        sum += (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        asm("" : "+x"(sum)); // here: g++ 12 else gathers products, for which 16 registers are too few
#endif
    }
#endif
#elif defined(UF_NEON_DOT)
    // Instructions take a word of a vector of four, so one vector holds those of all outputs.
    static_assert(plane_outputs == 4);
    typedef Ints Pixels;
    struct Weights {
        Ints words;
        int output;
    };
    static constexpr int largest_pair = any_pair;
    static Weights broadcast(const int32_t *word) { return {splat(*word), 0}; }
    static Weights of_output(const int32_t *words, int output) {
        return {*reinterpret_cast<const LooseInts *>(words), output};
    }
#if defined(__ARM_FEATURE_MATMUL_INT8)
    static constexpr bool centred = false;
    static Pixels load(const char *from) { return *reinterpret_cast<const LooseInts *>(from); }
    template <int output> static void multiply_add_word(Sum &sum, const Pixels &pixels, const Ints &words) {
        sum = (Ints)vusdotq_laneq_s32((int32x4_t)sum, (uint8x16_t)pixels, (int8x16_t)words, output);
    }
#else
    static constexpr bool centred = true;
    static Pixels load(const char *from) { return flip(*reinterpret_cast<const LooseInts *>(from)); }
    template <int output> static void multiply_add_word(Sum &sum, const Pixels &pixels, const Ints &words) {
        sum = (Ints)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)pixels, (int8x16_t)words, output);
    }
#endif
    // The compiler knows the output, as all loops over outputs are unrolled.
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
        switch (weights.output) {
        case 0:
            return multiply_add_word<0>(sum, pixels, weights.words);
        case 1:
            return multiply_add_word<1>(sum, pixels, weights.words);
        case 2:
            return multiply_add_word<2>(sum, pixels, weights.words);
        default:
            return multiply_add_word<3>(sum, pixels, weights.words);
        }
    }
#elif defined(UF_NEON)
    typedef Ints Pixels;
    typedef Ints Weights;
    static constexpr bool centred = true;
    // Sums of two products have 16 bits: of all that there are, twice 128 * 128 alone is too large.
    static constexpr int largest_pair = 255;
    static Pixels load(const char *from) { return flip(*reinterpret_cast<const LooseInts *>(from)); }
    static Weights broadcast(const int32_t *word) { return splat(*word); }
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
        const int8x16_t numbers = (int8x16_t)pixels, factors = (int8x16_t)weights;
        const int16x8_t low = vmull_s8(vget_low_s8(numbers), vget_low_s8(factors));
        const int16x8_t pairs = vpaddq_s16(low, vmull_high_s8(numbers, factors));
        sum = (Ints)vpadalq_s16((int32x4_t)sum, pairs);
    }
#else
    typedef Words Pixels;
    typedef int32_t Weights;
    static constexpr bool centred = false;
    static constexpr int largest_pair = any_pair;
    static Pixels load(const char *from) { return *reinterpret_cast<const LooseWords *>(from); }
    static Weights broadcast(const int32_t *word) { return *word; }
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) {
        for (int channel = 0; channel < 4; ++channel) {
            const int32_t weight = static_cast<int8_t>(static_cast<uint32_t>(weights) >> 8 * channel);
            sum += (Ints)(pixels >> 8 * channel & 0xFFU) * weight;
        }
    }
#endif
#if !defined(UF_NEON_DOT)
    static Weights of_output(const int32_t *words, int output) { return broadcast(words + output); }
#endif
};

// Four vectors of numbers, of which none is below -2^31, as the bytes of one plane.
inline Ints to_bytes(const Floats (&value)[plane_outputs]) {
#if defined(__AVX512BW__)
    // g++ 12 warns about the form without a mask.
    const auto rounded = [](Floats from) { return _mm512_maskz_cvtps_epi32(0xFFFF, (__m512)from); };
    const __m512i low = _mm512_packs_epi32(rounded(value[0]), rounded(value[1]));
    const __m512i high = _mm512_packs_epi32(rounded(value[2]), rounded(value[3]));
    const __m512i order = _mm512_set4_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400);
    return (Ints)_mm512_shuffle_epi8(_mm512_packus_epi16(low, high), order);
#elif defined(__AVX2__)
    const auto rounded = [](Floats from) { return _mm256_cvtps_epi32((__m256)from); };
    const __m256i low = _mm256_packs_epi32(rounded(value[0]), rounded(value[1]));
    const __m256i high = _mm256_packs_epi32(rounded(value[2]), rounded(value[3]));
    const __m256i order = _mm256_setr_epi32(0x0C080400, 0x0D090501, 0x0E0A0602, 0x0F0B0703, 0x0C080400, 0x0D090501,
                                            0x0E0A0602, 0x0F0B0703);
    return (Ints)_mm256_shuffle_epi8(_mm256_packus_epi16(low, high), order);
#elif defined(UF_NEON)
    const auto rounded = [](Floats from) { return vqmovn_s32(vcvtnq_s32_f32((float32x4_t)from)); };
    const uint8x8_t low = vqmovun_s16(vcombine_s16(rounded(value[0]), rounded(value[1])));
    const uint8x8_t high = vqmovun_s16(vcombine_s16(rounded(value[2]), rounded(value[3])));
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return (Ints)vqtbl1q_u8(vcombine_u8(low, high), order);
#else
    Ints bytes = {};
    for (int o = 0; o < plane_outputs; ++o) {
        Floats cut = value[o] > 0.0F ? value[o] : splat(0.0F);
        // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
        cut = (cut < 255.0F ? cut : splat(255.0F)) + 12582912.0F;
        bytes |= ((Ints)cut & 0xFF) << 8 * o;
    }
    return bytes;
#endif
}

} // namespace

extern const Int8WinogradKernels UF_JOIN(int8_winograd_kernels_, UF_ISA); // of int8_winograd_kernels.cpp

} // namespace uf
