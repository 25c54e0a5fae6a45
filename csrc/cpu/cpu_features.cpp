#include "cpu_features.h"

#include "error.h"
#include "message.h"

namespace uf {
namespace {

struct Candidate {
    const KernelTable *kernels;
    bool runs_here;
};

} // namespace

const KernelTable &choose_kernels(const std::string &isa) {
    // Best first; each one's machines run all that follow.
    const Candidate candidates[] = {
#if defined(__x86_64__)
        {kernels_avx512_bf16(), __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
        {kernels_avx512(), __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
        {kernels_avx2(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
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
    for (const char *other : {"avx2", "avx512", "avx512_bf16", "neon"}) {
        if (isa == other)
            throw Error(UF_ERR_UNSUPPORTED,
                        message("options.cpu_isa is ", isa, ", which is of another kind of CPU; this ",
                                "build of unet_fast has auto", names));
    }
    throw Error(UF_ERR_INVALID_ARGUMENT, message("options.cpu_isa is ", in_quotes(isa), ", accepted are auto", names));
}

} // namespace uf
