// What all contexts of a CPU executor share: the ops of a plan with their weights packed, made once per engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "convolution.h"
#include "int8_pass.h"
#include "kernels.h"
#include "plain_ops.h"
#include "plan.h"
#include "thread_pool.h"
#include "winograd.h"

namespace uf {

struct PreparedOp {
    const Op *op = nullptr;                    // of the plan
    std::vector<WinogradConvolution> winograd; // one after the other; where there is none, `convolution`
    Convolution convolution;
    Head head;                          // behind the convolution of a head
    RowFunction row_function = nullptr; // for the plain ops
};

struct CpuProgram {
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<ThreadPool> pool;
    const KernelTable *kernels = nullptr;
    Products products = Products::float32; // where they are exact enough, see choose_winograd
    bool bf16 = false;                     // tensors, and so all products; else they are float32
    bool has_stem = false;
    std::vector<int> halos; // per buffer: zero pixels that its readers need
    std::vector<PreparedOp> ops;
    std::unique_ptr<const Int8Program> int8; // null where the plan has no uint8
};

// Arguments and exceptions are those of make_cpu_executor.
std::shared_ptr<const CpuProgram> make_cpu_program(std::shared_ptr<const Plan> plan, std::shared_ptr<ThreadPool> pool,
                                                   const std::string &precision, const std::string &isa, Plan *spare);

} // namespace uf
