// What this CPU can do at most, measured: the ceilings that a profile is compared with.
#pragma once

#include <string>

#include "thread_pool.h"

namespace uf {

// Operations per second (2 per multiply-add) on all threads of the pool, with the instructions of `isa` ("portable",
// "avx2", "avx512", "avx512_bf16", "neon", "neon_fp16", "neon_bf16"), of products in `precision` and sums in float32
// (fp16: in fp16), or with "avx2_vnni", "avx512_vnni", "neon_dotprod" and "neon_i8mm" of products of bytes and sums in
// int32: chains of multiply-adds in registers, the best of many runs.  About 0.1 s.
double peak_operations(const std::string &isa, const std::string &precision, ThreadPool &pool);

// Bytes read and written per second by copies beyond every cache, the best of some runs.  About 0.1 s and 256 MB.
double peak_copy_rate(ThreadPool &pool);

} // namespace uf
