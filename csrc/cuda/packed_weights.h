// Constant tensors of the file in the layouts that kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/kernel_table.h"

namespace uf::cuda {

size_t packed_bytes(const PackedWeight &weight);

// Writes packed_bytes(weight) bytes.
void pack(const PackedWeight &weight, std::byte *target);

// Rounded to nearest, ties to even; what is too large becomes infinity.
uint16_t to_fp16(float value);
uint16_t to_bf16(float value);
float from_fp16(uint16_t bits);
float from_bf16(uint16_t bits);

} // namespace uf::cuda
