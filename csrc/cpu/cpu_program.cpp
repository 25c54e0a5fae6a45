#include "cpu_program.h"

#include <algorithm>

#include "cpu_features.h"
#include "error.h"
#include "message.h"
#include "winograd_choice.h"

namespace uf {
namespace {

bool convolves(OpKind kind) {
    switch (kind) {
    case OpKind::stem:
    case OpKind::conv:
    case OpKind::up_conv:
    case OpKind::concat_conv:
    case OpKind::head:
    case OpKind::conv_transpose:
        return true;
    default:
        return false;
    }
}

Products choose_products(const std::string &precision, const std::string &plan_precision, const KernelTable &kernels) {
    const bool bf16 = kernels.conv_bf16 != nullptr, fp16 = kernels.winograd->product_fp16 != nullptr;
    if (precision == "auto") {
        if (fp16 && plan_precision == "fp16")
            return Products::fp16;
        return bf16 && plan_precision != "float32" ? Products::bf16 : Products::float32;
    }
    if ((precision == "bf16" && !bf16) || (precision == "fp16" && !fp16))
        throw Error(UF_ERR_UNSUPPORTED,
                    message("precision ", precision, " needs a CPU with ",
                            precision == "bf16" ? "AVX-512 BF16 or Arm's BF16" : "Arm's FP16",
                            ", and the instruction set in use is ", kernels.isa, "; here, use auto or float32"));
    return precision == "bf16" ? Products::bf16 : precision == "fp16" ? Products::fp16 : Products::float32;
}

// `winograd`: the forms that were chosen for the op.
PreparedOp prepare(const Op &op, const std::vector<WinogradForm> &winograd, const CpuProgram &program) {
    PreparedOp prepared;
    prepared.op = &op;
    prepared.row_function = row_function(op.kind, program.bf16);
    if (!convolves(op.kind) || Int8Program::runs(op))
        return prepared;
    std::vector<int> channels;
    for (const int input : op.inputs)
        channels.push_back(program.plan->buffers[input].channels);
    if (!winograd.empty())
        prepared.winograd = prepare_winograd(op, channels, winograd, *program.kernels, *program.pool);
    else
        prepared.convolution = prepare_convolution(op, channels, program.bf16, *program.kernels, *program.pool);
    if (op.kind == OpKind::head) {
        prepared.head = prepare_head(op, static_cast<int>(output_channels(op)), program.plan->output_channels,
                                     *program.kernels, *program.pool);
    }
    return prepared;
}

} // namespace

std::shared_ptr<const CpuProgram> make_cpu_program(std::shared_ptr<const Plan> plan, std::shared_ptr<ThreadPool> pool,
                                                   const std::string &precision, const std::string &isa, Plan *spare) {
    auto program = std::make_shared<CpuProgram>();
    program->plan = std::move(plan);
    program->pool = std::move(pool);
    program->kernels = &choose_kernels(isa);
    const bool int8 = program->plan->precision == "int8"; // the ops that are not run in the best of the rest
    program->products = choose_products(int8 ? "auto" : precision, program->plan->precision, *program->kernels);
    program->bf16 = program->products == Products::bf16;
    if (int8)
        program->int8 = std::make_unique<const Int8Program>(*program->plan, isa);
    program->halos.assign(program->plan->buffers.size(), 0);
    const auto winograd = choose_winograd(*program->plan, *program->kernels, program->products);
    for (const Op &op : program->plan->ops) {
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            int &halo = program->halos[op.inputs[i]];
            halo = std::max(halo, required_halo(op, static_cast<int>(i)));
        }
        program->has_stem = program->has_stem || op.kind == OpKind::stem;
        const size_t number = program->ops.size();
        program->ops.push_back(prepare(op, winograd[number], *program));
        if (spare != nullptr && convolves(op.kind) && !Int8Program::runs(op))
            spare->ops[number].tensors.clear();
    }
    return program;
}

} // namespace uf
