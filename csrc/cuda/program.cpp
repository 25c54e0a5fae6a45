#include "cuda/program.h"

#include "cuda/packed_weights.h"
#include "error.h"
#include "message.h"

namespace uf::cuda {

namespace {

constexpr size_t alignment = 256;

// A kernel may use this much dynamic shared memory without being allowed to.
constexpr int free_shared_bytes = 48 * 1024;

} // namespace

Program::Program(std::shared_ptr<const Plan> plan, std::shared_ptr<const Device> device, Selection selection,
                 bool every_candidate)
    : plan_(std::move(plan)), device_(std::move(device)), selection_(std::move(selection)) {
    device_->guarded([&] {
        for (const Step &step : selection_.steps)
            for (const std::vector<Candidate> &candidates : step.candidates)
                for (const Candidate &candidate : candidates)
                    if (every_candidate || &candidate == &chosen(candidates))
                        load(candidate);
        upload_weights();
    });
}

void Program::load(const Candidate &candidate) {
    const KernelCode &code = *candidate.code;
    const Driver &api = device_->api();
    try {
        auto module = modules_.find(code.module);
        if (module == modules_.end())
            module = modules_.emplace(code.module, load_module(device_, plan_->kernels->modules[code.module])).first;
        CUfunction function = nullptr;
        api.module_get_function(&function, module->second.get(), code.entry.c_str());
        if (code.shared_bytes > free_shared_bytes)
            api.function_set_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, code.shared_bytes);
        functions_[&code] = function;
    } catch (const Error &error) {
        throw Error(error.status(),
                    message("cannot load kernel ", in_quotes(code.entry), " (", code.target(), ") of op ",
                            in_quotes(plan_->ops[candidate.kernel->op].name), ": ", error.what()));
    }
    for (const KernelArgument &argument : candidate.kernel->arguments)
        if (argument.kind == KernelArgument::Kind::weight)
            weight_offsets_.emplace(argument.index, 0);
}

void Program::upload_weights() {
    size_t bytes = 0;
    for (auto &[index, offset] : weight_offsets_) {
        offset = bytes;
        bytes += (packed_bytes(plan_->kernels->weights[index]) + alignment - 1) / alignment * alignment;
    }
    if (bytes == 0)
        return;
    std::vector<std::byte> packed(bytes);
    for (const auto &[index, offset] : weight_offsets_)
        pack(plan_->kernels->weights[index], packed.data() + offset);
    weights_ = allocate_device(device_, bytes);
    const Stream stream = make_stream(device_);
    const Driver &api = device_->api();
    api.copy_to_device(weights_.get(), packed.data(), bytes, stream.get());
    api.stream_synchronize(stream.get());
}

} // namespace uf::cuda
