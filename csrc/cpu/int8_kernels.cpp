// Compiled once per instruction set, with
// -DUF_ISA=portable|avx2|avx2_vnni|avx512|avx512_vnni|neon|neon_dotprod|neon_i8mm and the flags for it, and without
// contraction of products and sums.
//
// The microkernel is a block of P pixel vectors x 4 output channels that lives in registers while all planes and taps
// stream past: per plane and tap, P loads of pixels, 4 broadcasts of weights, 4 * P multiply-adds.

#include "int8_vector.h"

namespace uf {
namespace {

// float32 pixels, of the image, times float32 weights.
struct FloatProducts {
    // A stem has one phase, an image any values.
    static constexpr bool interleaves = false, may_overflow = true, centred = false;
    static constexpr int largest_pair = any_pair;
    typedef Floats Sum;
    typedef float Bias;
    typedef Floats Pixels;
    typedef Floats Weights;
    static Pixels load(const char *from) { return *reinterpret_cast<const LooseFloats *>(from); }
    static Weights broadcast(const int32_t *word) { return splat(*reinterpret_cast<const float *>(word)); }
    static Weights of_output(const int32_t *words, int output) { return broadcast(words + output); }
    static void multiply_add(Sum &sum, const Pixels &pixels, const Weights &weights) { sum += pixels * weights; }
};

inline Floats to_floats(Ints sum) { return __builtin_convertvector(sum, Floats); }
inline Floats to_floats(Floats sum) { return sum; }

// Adds the products of one part, but for its excess, to every `step`-th vector of sums from `first` on.
template <class Products, int first, int step, int P>
__attribute__((always_inline)) inline void accumulate(typename Products::Sum (&sum)[plane_outputs][P],
                                                      const PlaneTaps &part) {
    constexpr int count = P / step;
    if constexpr (Products::centred) {
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
#pragma GCC unroll 8
            for (int v = 0; v < count; ++v)
                sum[o][first + step * v] += part.zeros[o];
        }
    }
    int64_t pixels[count];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v)
        pixels[v] = part.pixels[v];
    const char *plane = part.input;
    const int32_t *weights = reinterpret_cast<const int32_t *>(part.weights);
    for (int i = 0; i < part.planes; ++i, plane += part.plane_stride) {
        for (int t = 0; t < part.tap_count; ++t, weights += plane_outputs) {
            const char *from = plane + part.taps[t];
            typename Products::Pixels loaded[count];
#pragma GCC unroll 8
            for (int v = 0; v < count; ++v)
                loaded[v] = Products::load(from + pixels[v]);
#pragma GCC unroll 4
            for (int o = 0; o < plane_outputs; ++o) {
                const typename Products::Weights weight = Products::of_output(weights, o);
#pragma GCC unroll 8
                for (int v = 0; v < count; ++v)
                    Products::multiply_add(sum[o][first + step * v], loaded[v], weight);
            }
        }
    }
}

// What `accumulate` leaves out of a part: the products with its excess, which lies in the order of outputs.
template <class Products, int first, int step, int P>
__attribute__((always_inline)) inline void accumulate_excess(typename Products::Sum (&sum)[plane_outputs][P],
                                                             const PlaneTaps &part) {
    constexpr int count = P / step;
    if (Products::largest_pair == any_pair || part.excess.count == 0)
        return;
    const ExcessWeight *at = part.excess.first, *const end = at + part.excess.count;
#pragma GCC unroll 4
    for (int o = 0; o < plane_outputs; ++o) {
        for (; at != end && at->output == o; ++at) {
            const char *from = part.input + at->plane * part.plane_stride + part.taps[at->tap];
            const typename Products::Weights weight = Products::broadcast(&at->weights);
#pragma GCC unroll 8
            for (int v = 0; v < count; ++v)
                Products::multiply_add(sum[o][first + step * v], Products::load(from + part.pixels[v]), weight);
        }
    }
}

template <class Products, int P, bool interleaved> void convolve_block(const PlaneBlock &block) {
    typename Products::Sum sum[plane_outputs][P];
    const auto *bias = static_cast<const typename Products::Bias *>(block.bias);
#pragma GCC unroll 4
    for (int o = 0; o < plane_outputs; ++o) {
#pragma GCC unroll 8
        for (int v = 0; v < P; ++v)
            sum[o][v] = splat(bias[o]);
    }

    const PlaneTaps *part = block.parts, *const end = part + block.part_count;
    if constexpr (interleaved) {
        accumulate<Products, 0, 2>(sum, part[0]);
        accumulate<Products, 1, 2>(sum, part[1]);
        accumulate_excess<Products, 0, 2>(sum, part[0]);
        accumulate_excess<Products, 1, 2>(sum, part[1]);
        part += 2;
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o) {
#pragma GCC unroll 4
            for (int v = 0; v < P; v += 2) {
                const typename Products::Sum even = sum[o][v], odd = sum[o][v + 1];
                sum[o][v] = __builtin_shufflevector(even, odd, UF_LOW);
                sum[o][v + 1] = __builtin_shufflevector(even, odd, UF_HIGH);
            }
        }
    }
    for (; part != end; ++part) {
        accumulate<Products, 0, 1>(sum, *part);
        accumulate_excess<Products, 0, 1>(sum, *part);
    }

    if constexpr (interleaved) {
        const Ints lanes = {UF_LANES}, first_lane = lanes == 0, last_lane = lanes == block.last_lane;
#pragma GCC unroll 8
        for (int v = 0; v < P; ++v) {
            if ((block.first >> v & 1) != 0) {
#pragma GCC unroll 4
                for (int o = 0; o < plane_outputs; ++o)
                    sum[o][v] += first_lane & block.first_bias[o];
            }
            if ((block.last >> v & 1) != 0) {
#pragma GCC unroll 4
                for (int o = 0; o < plane_outputs; ++o)
                    sum[o][v] += last_lane & block.last_bias[o];
            }
        }
    }

#pragma GCC unroll 8
    for (int v = 0; v < P; ++v) {
        Floats value[plane_outputs];
#pragma GCC unroll 4
        for (int o = 0; o < plane_outputs; ++o)
            value[o] = to_floats(sum[o][v]) * block.multiplier[o];
        char *output = block.output + block.output_pixels[v];
        if (block.to_bytes) {
            if constexpr (Products::may_overflow) {
#pragma GCC unroll 4
                for (int o = 0; o < plane_outputs; ++o)
                    value[o] = value[o] < 255.0F ? value[o] : splat(255.0F); // NaN and infinity become 255
            }
            *reinterpret_cast<LooseInts *>(output) = to_bytes(value);
        } else {
#pragma GCC unroll 4
            for (int o = 0; o < plane_outputs; ++o) {
                if (block.relu)
                    value[o] = value[o] > 0.0F ? value[o] : splat(0.0F);
                *reinterpret_cast<LooseFloats *>(output + o * block.output_plane_stride) = value[o];
            }
        }
    }
}

template <class Products, int P> void convolve_vectors(const PlaneBlock &block) {
    if constexpr (P > 0) {
        if (block.vectors != P)
            return convolve_vectors<Products, P - 1>(block);
        if constexpr (Products::interleaves && P % 2 == 0) {
            if (block.interleaved)
                return convolve_block<Products, P, true>(block);
        }
        convolve_block<Products, P, false>(block);
    }
}

void convolve_bytes(const PlaneBlock &block) { convolve_vectors<ByteProducts, most_vectors>(block); }
void convolve_floats(const PlaneBlock &block) { convolve_vectors<FloatProducts, most_vectors>(block); }

void pool_plane(const PlanePool &pool) {
    constexpr int bytes = lane_count * 4;
    const auto larger = [](Bytes a, Bytes b) { return a > b ? a : b; };
    const auto column = [&](int64_t at) {
        const Bytes upper = (Bytes) * reinterpret_cast<const LooseInts *>(pool.upper + at);
        return (Ints)larger(upper, (Bytes) * reinterpret_cast<const LooseInts *>(pool.lower + at));
    };
    for (int64_t pixel = 0; pixel < pool.pixels; pixel += lane_count) {
        const Ints left = column(8 * pixel), right = column(8 * pixel + bytes);
        const Ints even = __builtin_shufflevector(left, right, UF_EVEN);
        const Ints odd = __builtin_shufflevector(left, right, UF_ODD);
        *reinterpret_cast<LooseInts *>(pool.output + 4 * pixel) = (Ints)larger((Bytes)even, (Bytes)odd);
    }
}

void head_planes(const PlaneHead &head) {
    for (int64_t pixel = 0; pixel < head.pixels; pixel += lane_count) {
        for (int output = 0; output < head.outputs; ++output) {
            Floats sum = splat(head.bias[output]);
            const float *weight = head.weight + static_cast<int64_t>(output) * head.inputs;
            const float *from = head.features + pixel;
            for (int input = 0; input < head.inputs; ++input, from += head.feature_stride)
                sum += *reinterpret_cast<const LooseFloats *>(from) * weight[input];
            *reinterpret_cast<LooseFloats *>(head.logits + output * head.feature_stride + pixel) = sum;
        }
    }
}

const Int8Kernels table = {UF_STRING(UF_ISA),     lane_count,
                           most_vectors,          ByteProducts::largest_pair,
                           ByteProducts::centred, convolve_bytes,
                           convolve_floats,       pool_plane,
                           head_planes,           &UF_JOIN(int8_winograd_kernels_, UF_ISA)};

} // namespace

const Int8Kernels *UF_JOIN(int8_kernels_, UF_ISA)() { return &table; }

} // namespace uf
