// Which convolutions of a network take the form of winograd.h, and with which tiles.
#pragma once

#include <vector>

#include "kernels.h"
#include "plan.h"
#include "winograd.h"

namespace uf {

// For each op of the plan its forms as prepare_winograd takes them; none where the direct convolution is faster, or
// where the weights, which take up to four times their memory as Winograd's, would need more than they gain.
// `products`: what they may be in beside float32.  With bf16 the tensors are in bf16 too.
std::vector<std::vector<WinogradForm>> choose_winograd(const Plan &plan, const KernelTable &kernels, Products products);

} // namespace uf
