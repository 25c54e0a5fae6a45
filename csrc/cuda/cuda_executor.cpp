#include "cuda/cuda_executor.h"

#include <algorithm>

#include "cuda/cuda_context.h"
#include "cuda/profiler.h"
#include "cuda/program.h"
#include "cuda/tuner.h"
#include "cuda/tuning.h"
#include "error.h"
#include "message.h"

namespace uf {

namespace {

class CudaExecutor : public Executor {
  public:
    CudaExecutor(std::shared_ptr<const cuda::Program> program, cuda::Tuning tuning)
        : program_(std::move(program)), tuning_(std::move(tuning)) {}

    std::unique_ptr<Context> make_context(const PassShape &shape) const override {
        return cuda::make_cuda_context(program_, shape);
    }
    void check_device_memory(const std::byte *data, const char *argument) const override;
    void copy(std::byte *target, const std::byte *source, size_t bytes) const override;
    std::shared_ptr<std::byte> allocate(size_t bytes) const override;
    void copy_rows(std::byte *target, int64_t target_stride, const std::byte *source, int64_t source_stride,
                   int64_t bytes, int64_t rows) const override;
    Profile profile(const PassShape &shape) const override { return cuda::profile(*program_, shape); }
    std::unique_ptr<Executor> tuned(const PassShape &shape, const std::string &path,
                                    std::string &not_kept) const override;
    bool healthy() const override { return !program_->device()->lost(); }
    int overlapping_passes() const override { return 2; }
    std::string tuning() const override { return tuning_.about; }
    std::string tuning_file() const override { return tuning_.file; }
    std::string device() const override { return message("cuda:", program_->device()->ordinal()); }
    std::string precision() const override { return program_->selection().precision; }
    std::string isa() const override { return ""; }

  private:
    const std::shared_ptr<const cuda::Program> program_;
    const cuda::Tuning tuning_;
};

void CudaExecutor::check_device_memory(const std::byte *data, const char *argument) const {
    constexpr cuda::CUresult not_known = 1; // CUDA_ERROR_INVALID_VALUE
    const auto refuse = [&](const auto &...parts) {
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message(argument, ".memory is UF_MEMORY_CUDA, but ", argument, ".data is ", parts...));
    };
    const cuda::Device &device = *program_->device();
    device.guarded([&] {
        const auto attribute = [&](int which, auto value) {
            const cuda::CUresult result =
                device.api().pointer_get_attribute.quietly(&value, which, reinterpret_cast<cuda::CUdeviceptr>(data));
            if (result == not_known)
                refuse("not an address that CUDA knows; set it to UF_MEMORY_HOST if it is host memory");
            if (result != 0)
                cuda::throw_failure("cuPointerGetAttribute", result);
            return value;
        };
        if (attribute(cuda::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 0U) != cuda::CU_MEMORYTYPE_DEVICE)
            refuse("in host memory; set it to UF_MEMORY_HOST");
        if (const int there = attribute(cuda::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, 0); there != device.ordinal())
            refuse("in memory of cuda:", there, "; this engine runs on cuda:", device.ordinal());
    });
}

void CudaExecutor::copy(std::byte *target, const std::byte *source, size_t bytes) const {
    const cuda::Device &device = *program_->device();
    device.guarded([&] {
        device.api().copy(reinterpret_cast<cuda::CUdeviceptr>(target), reinterpret_cast<cuda::CUdeviceptr>(source),
                          bytes);
        // From ordinary host memory the driver returns once it has read, not once all has arrived.
        device.api().stream_synchronize(cuda::CU_STREAM_LEGACY);
    });
}

std::shared_ptr<std::byte> CudaExecutor::allocate(size_t bytes) const {
    const auto memory = std::make_shared<cuda::DeviceMemory>();
    program_->device()->guarded([&] { *memory = cuda::allocate_device(program_->device(), bytes); });
    return {memory, reinterpret_cast<std::byte *>(memory->get())};
}

void CudaExecutor::copy_rows(std::byte *target, int64_t target_stride, const std::byte *source, int64_t source_stride,
                             int64_t bytes, int64_t rows) const {
    cuda::CUDA_MEMCPY2D copy{};
    copy.srcMemoryType = copy.dstMemoryType = cuda::CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = reinterpret_cast<cuda::CUdeviceptr>(source);
    copy.srcPitch = static_cast<size_t>(source_stride);
    copy.dstDevice = reinterpret_cast<cuda::CUdeviceptr>(target);
    copy.dstPitch = static_cast<size_t>(target_stride);
    copy.WidthInBytes = static_cast<size_t>(bytes);
    copy.Height = static_cast<size_t>(rows);
    const cuda::Device &device = *program_->device();
    device.guarded([&] { device.api().copy_rows(&copy); });
}

std::unique_ptr<Executor> CudaExecutor::tuned(const PassShape &shape, const std::string &path,
                                              std::string &not_kept) const {
    const std::shared_ptr<const Plan> plan = program_->shared_plan();
    const std::shared_ptr<const cuda::Device> device = program_->device();
    cuda::Selection selection = cuda::select_kernels(*plan, *device, program_->selection().precision);
    const cuda::TuningTable table = cuda::tune(plan, device, selection, shape);
    cuda::Tuning tuning;
    try {
        tuning.file = cuda::keep_tuning(table, selection, *plan, *device, path);
        tuning.about = message("measured on this GPU, kept in ", tuning.file);
    } catch (const Error &error) {
        not_kept = error.what();
        tuning.about = message("measured on this GPU, not kept: ", not_kept);
    }
    cuda::order_by(table, selection);
    return std::make_unique<CudaExecutor>(std::make_shared<const cuda::Program>(plan, device, std::move(selection)),
                                          std::move(tuning));
}

std::unique_ptr<Executor> on_device(const std::shared_ptr<const Plan> &plan, int ordinal,
                                    const std::string &precision) {
    const auto device = std::make_shared<const cuda::Device>(ordinal);
    cuda::Selection selection = cuda::select_kernels(*plan, *device, precision);
    cuda::Tuning tuning = cuda::apply_tuning(selection, *plan, *device);
    return std::make_unique<CudaExecutor>(std::make_shared<const cuda::Program>(plan, device, std::move(selection)),
                                          std::move(tuning));
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
