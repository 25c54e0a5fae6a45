#include "cuda/cuda_executor.h"

#include <algorithm>

#include "cuda/cuda_context.h"
#include "cuda/program.h"
#include "error.h"
#include "message.h"

namespace uf {

namespace {

class CudaExecutor : public Executor {
  public:
    explicit CudaExecutor(std::shared_ptr<const cuda::Program> program) : program_(std::move(program)) {}

    std::unique_ptr<Context> make_context(const PassShape &shape) const override {
        return cuda::make_cuda_context(program_, shape);
    }
    std::string device() const override { return message("cuda:", program_->device()->ordinal()); }
    std::string precision() const override { return program_->selection().precision; }
    std::string isa() const override { return ""; }

  private:
    const std::shared_ptr<const cuda::Program> program_;
};

std::unique_ptr<Executor> on_device(const std::shared_ptr<const Plan> &plan, int ordinal, const std::string &precision) {
    const auto device = std::make_shared<const cuda::Device>(ordinal);
    return std::make_unique<CudaExecutor>(std::make_shared<const cuda::Program>(plan, device, precision));
}

} // namespace

std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<const Plan> plan, const std::string &device,
                                             const std::string &precision) {
    if (device != "cuda") {
        const std::string number = device.rfind("cuda:", 0) == 0 ? device.substr(5) : "";
        if (number.empty() || number.size() > 4 ||
            !std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; }))
            throw Error(UF_ERR_INVALID_ARGUMENT,
                        message("options.device is ", in_quotes(device), ", expected cuda or cuda:N"));
        return on_device(plan, std::stoi(number), precision);
    }
    for (int ordinal = 0;; ++ordinal) {
        try {
            return on_device(plan, ordinal, precision);
        } catch (const Error &error) {
            // The message of the last GPU stands for all.
            if (error.status() != UF_ERR_UNSUPPORTED || ordinal + 1 >= cuda::Device::count())
                throw;
        }
    }
}

} // namespace uf
