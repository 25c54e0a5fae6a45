#include "cpu_features.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#include "error.h"
#include "message.h"

namespace uf {
namespace {

struct Candidate {
    const KernelTable *kernels;
    bool runs_here;
};

struct Int8Candidate {
    const Int8Kernels *kernels;
    const char *bound; // what options.cpu_isa has to allow
    bool runs_here;
};

#if defined(__x86_64__)
// What every processor with AVX-512 but the first (Knights) has.
bool has_avx512() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

// CPUID leaf 7.1, EAX bit 4; __builtin_cpu_supports of clang 14 does not know it.
bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#elif defined(__aarch64__)
// What ARMv8.2 and 8.6 brought.
bool has_fp16() { return (getauxval(AT_HWCAP) >> 10 & 1) != 0; }                // HWCAP_ASIMDHP
bool has_dotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }             // HWCAP_ASIMDDP
bool has_i8mm() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }               // HWCAP2_I8MM
bool has_bf16() { return (getauxval(AT_HWCAP2) >> 14 & 1) != 0 && has_fp16(); } // HWCAP2_BF16
#endif

} // namespace

const KernelTable &choose_kernels(const std::string &isa) {
    // Best first; each one's machines run all that follow.
    const Candidate candidates[] = {
#if defined(__x86_64__)
        {kernels_avx512_bf16(), __builtin_cpu_supports("avx512bf16") && has_avx512()},
        {kernels_avx512(), __builtin_cpu_supports("fma") && has_avx512()},
        {kernels_avx2(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
        {kernels_neon_bf16(), has_bf16()},
        {kernels_neon_fp16(), has_fp16()},
        {kernels_neon(), true}, // part of every aarch64 CPU
#endif
        {kernels_portable(), true},
    };
    std::string names;
    bool within_bound = isa == "auto";
    for (const Candidate &candidate : candidates) {
        names += std::string(", ") + candidate.kernels->isa;
        within_bound = within_bound || isa == candidate.kernels->isa;
        if (within_bound && candidate.runs_here)
            return *candidate.kernels;
    }
    for (const char *other : {"avx2", "avx512", "avx512_bf16", "neon", "neon_fp16", "neon_bf16"}) {
        if (isa == other)
            throw Error(UF_ERR_UNSUPPORTED,
                        message("options.cpu_isa is ", isa, ", which is of another kind of CPU; this ",
                                "build of unet_fast has auto", names));
    }
    throw Error(UF_ERR_INVALID_ARGUMENT, message("options.cpu_isa is ", in_quotes(isa), ", accepted are auto", names));
}

const Int8Kernels &choose_int8_kernels(const std::string &isa) {
    // Best first.
    const Int8Candidate candidates[] = {
#if defined(__x86_64__)
        {int8_kernels_avx512_vnni(), "avx512_bf16", __builtin_cpu_supports("avx512vnni") && has_avx512()},
        {int8_kernels_avx512(), "avx512", has_avx512()},
        {int8_kernels_avx2_vnni(), "avx512", has_avx_vnni()}, // "avx2" is without
        {int8_kernels_avx2(), "avx2", __builtin_cpu_supports("avx2") != 0},
#elif defined(__aarch64__)
        {int8_kernels_neon_i8mm(), "neon_bf16", has_i8mm()},
        {int8_kernels_neon_dotprod(), "neon_fp16", has_dotprod()},
        {int8_kernels_neon(), "neon", true},
#endif
        {int8_kernels_portable(), "portable", true},
    };
    bool within_bound = isa == "auto";
    for (const Int8Candidate &candidate : candidates) {
        within_bound = within_bound || isa == candidate.bound;
        if (within_bound && candidate.runs_here)
            return *candidate.kernels;
    }
    return *int8_kernels_portable();
}

} // namespace uf
