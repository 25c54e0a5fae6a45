#include "cpu/machine_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace uf {

namespace {

// Independent sums: enough to hide the latency of a multiply-add (4 to 5 cycles, two per cycle, or four on large
// aarch64 cores), few enough to stay in the 16 or 32 registers together with the two factors.
#if defined(__aarch64__)
constexpr int sums = 24;
#else
constexpr int sums = 12;
#endif
constexpr int64_t repeats = 50000; // a few milliseconds, so that some run meets no one else's time slice

std::atomic<float> sink; // keeps results, and with them the work, alive

#define UF_CHAINS(name, bytes)                                                                                         \
    void name() {                                                                                                      \
        typedef float Vector __attribute__((vector_size(bytes)));                                                      \
        Vector sum[sums], factor = {}, term = {};                                                                      \
        for (int i = 0; i < sums; ++i) /* unknown to the compiler, or it would leave out a chain whose sum stays */    \
            sum[i] = Vector{} + (sink + static_cast<float>(i));                                                        \
        factor += 0.999F; /* the sums stay finite and normal */                                                        \
        term += 0.001F;                                                                                                \
        for (int64_t repeat = 0; repeat < repeats; ++repeat)                                                           \
            for (int i = 0; i < sums; ++i)                                                                             \
                sum[i] = sum[i] * factor + term;                                                                       \
        for (int i = 1; i < sums; ++i)                                                                                 \
            sum[0] += sum[i];                                                                                          \
        sink = sum[0][0];                                                                                              \
    }

UF_CHAINS(chains_128, 16)
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) UF_CHAINS(chains_256, 32) __attribute__((target("avx512f")))
UF_CHAINS(chains_512, 64)

    __attribute__((target("avx512f,avx512bf16"))) void chains_bf16() {
    __m512 sum[sums];
    const __m512i bits = _mm512_set1_epi16(0x3F80); // 1.0 in bf16
    __m512bh ones;
    std::memcpy(&ones, &bits, sizeof ones);
    for (int i = 0; i < sums; ++i)
        sum[i] = _mm512_set1_ps(static_cast<float>(i));
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
        for (int i = 0; i < sums; ++i)
            sum[i] = _mm512_dpbf16_ps(sum[i], ones, ones);
    for (int i = 1; i < sums; ++i)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    sink = _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx2,avxvnni"))) void chains_avx_vnni() {
    __m256i sum[sums];
    const __m256i ones = _mm256_set1_epi8(1);
    for (int i = 0; i < sums; ++i)
        sum[i] = _mm256_set1_epi32(i);
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
        for (int i = 0; i < sums; ++i)
            sum[i] = _mm256_dpbusd_avx_epi32(sum[i], ones, ones);
    for (int i = 1; i < sums; ++i)
        sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    sink = static_cast<float>(_mm256_cvtsi256_si32(sum[0]));
}

__attribute__((target("avx512f,avx512vnni"))) void chains_vnni() {
    __m512i sum[sums];
    const __m512i ones = _mm512_set1_epi8(1);
    for (int i = 0; i < sums; ++i)
        sum[i] = _mm512_set1_epi32(i);
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
        for (int i = 0; i < sums; ++i)
            sum[i] = _mm512_dpbusd_epi32(sum[i], ones, ones);
    for (int i = 1; i < sums; ++i)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    sink = static_cast<float>(_mm512_cvtsi512_si32(sum[0]));
}
#elif defined(__aarch64__)
#if defined(__clang__)
#define UF_TARGET(extension) __attribute__((target(extension)))
#else
#define UF_TARGET(extension) __attribute__((target("arch=armv8.2-a+" extension)))
#endif
// In assembler, as clang 14 has no intrinsics for what a file is not compiled for.
#define UF_ASSEMBLER_CHAINS(extension, instruction, sums_of, elements)                                                 \
    UF_TARGET(extension) void chains_##instruction() {                                                                 \
        typedef int32_t Vector __attribute__((vector_size(16)));                                                       \
        Vector sum[sums] = {};                                                                                         \
        const Vector zeros = {};                                                                                       \
        for (int64_t repeat = 0; repeat < repeats; ++repeat)                                                           \
            for (int i = 0; i < sums; ++i)                                                                             \
                asm volatile(#instruction " %0." sums_of ", %1." elements ", %1." elements                             \
                             : "+w"(sum[i])                                                                            \
                             : "w"(zeros));                                                                            \
    }

UF_ASSEMBLER_CHAINS("bf16", bfdot, "4s", "8h")
UF_ASSEMBLER_CHAINS("fp16", fmla, "8h", "8h")
UF_ASSEMBLER_CHAINS("dotprod", sdot, "4s", "16b")
UF_ASSEMBLER_CHAINS("i8mm", usdot, "4s", "16b")
#endif

// The highest rate of some runs of `tasks` tasks that do `work` together.
template <class Task> double best_rate(ThreadPool &pool, int times, int64_t tasks, double work, const Task &task) {
    double best = 0;
    for (int run = 0; run < times; ++run) {
        const auto begin = std::chrono::steady_clock::now();
        pool.run(tasks, task);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
        best = std::max(best, work / taken.count());
    }
    return best;
}

} // namespace

double peak_operations(const std::string &isa, const std::string &precision, ThreadPool &pool) {
    struct Chains {
        void (*run)();
        int operations; // per step of a chain
    } chains{chains_128, 8};
#if defined(__x86_64__)
    if (isa == "avx2")
        chains = {chains_256, 16};
    else if (isa == "avx2_vnni")
        chains = {chains_avx_vnni, 64};
    else if (isa == "avx512_vnni")
        chains = {chains_vnni, 128};
    else if (isa == "avx512_bf16" && precision == "bf16")
        chains = {chains_bf16, 64};
    else if (isa == "avx512" || isa == "avx512_bf16")
        chains = {chains_512, 32};
#elif defined(__aarch64__)
    if (precision == "bf16")
        chains = {chains_bfdot, 16};
    else if (precision == "fp16")
        chains = {chains_fmla, 16};
    else if (isa == "neon_dotprod")
        chains = {chains_sdot, 32};
    else if (isa == "neon_i8mm")
        chains = {chains_usdot, 32};
#else
    static_cast<void>(isa), static_cast<void>(precision);
#endif
    const double operations = static_cast<double>(repeats) * sums * chains.operations * pool.threads();
    return best_rate(pool, 20, pool.threads(), operations, [&](int64_t, int) { chains.run(); });
}

double peak_copy_rate(ThreadPool &pool) {
    constexpr size_t bytes = size_t{128} << 20, piece = size_t{1} << 20;
    std::vector<char> source(bytes, 1), target(bytes);
    return best_rate(pool, 10, bytes / piece, 2.0 * static_cast<double>(bytes), [&](int64_t task, int) {
        const auto at = static_cast<size_t>(task) * piece;
        std::memcpy(target.data() + at, source.data() + at, piece);
    });
}

} // namespace uf
