#include "cuda/cuda_context.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "cuda/pass_graph.h"
#include "error.h"
#include "images.h"
#include "message.h"

namespace uf::cuda {

namespace {

constexpr int64_t alignment = 256;
constexpr int64_t widest_row = int64_t{1} << 25; // elements: kernels address within a few rows by 32 bits
constexpr int64_t transform_bytes = sizeof(PixelTransform);
static_assert(sizeof(PixelTransform) == 8 * sizeof(float), "kernels read scale[4], shift[4]");

// Hands out aligned ranges of one allocation, whose size is known at the end.
class Layout {
  public:
    size_t take(int64_t bytes) {
        const int64_t offset = bytes_;
        bytes_ = checked_product({bytes_ + (bytes + alignment - 1) / alignment * alignment});
        return static_cast<size_t>(offset);
    }
    size_t bytes() const { return static_cast<size_t>(bytes_); }

  private:
    int64_t bytes_ = 0;
};

int64_t image_bytes(const Plan &plan, const PassShape &shape, PixelType type) {
    return checked_product(
        {shape.count, shape.height, shape.width, plan.channels, static_cast<int64_t>(pixel_bytes(type))});
}

// Pixels of a view, tight, to `target`.
void copy_tight(const ImageView &view, const PassShape &shape, int channels, std::byte *target) {
    const auto item = static_cast<int64_t>(pixel_bytes(view.type));
    const bool tight_rows = view.channel_stride == item && view.pixel_stride == item * channels;
    const int64_t row_bytes = shape.width * channels * item;
    for (int64_t y = 0; y < shape.height; ++y, target += row_bytes) {
        const std::byte *const row = view.data + y * view.row_stride;
        if (tight_rows) {
            std::memcpy(target, row, static_cast<size_t>(row_bytes));
            continue;
        }
        std::byte *to = target;
        for (int64_t x = 0; x < shape.width; ++x)
            for (int channel = 0; channel < channels; ++channel, to += item)
                std::memcpy(to, row + x * view.pixel_stride + channel * view.channel_stride, static_cast<size_t>(item));
    }
}

// The distance from one view of a batch to the next, in bytes; false if there is no such distance that is a multiple of
// `item`.
template <class View> bool regular(const View *views, int count, int64_t item, int64_t &stride) {
    stride = count > 1 ? views[1].data - views[0].data : 0;
    for (int i = 2; i < count; ++i)
        if (views[i].data - views[i - 1].data != stride)
            return false;
    return stride % item == 0;
}

class CudaContext : public uf::Context {
  public:
    // The device's context must be current.
    CudaContext(std::shared_ptr<const Program> program, const PassShape &shape);
    ~CudaContext() override;

    void run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
             const OutputView *outputs, void *stream) override;
    PassShape shape() const override { return shape_; }

  private:
    const Plan &plan() const { return program_->plan(); }
    const Driver &api() const { return program_->device()->api(); }

    void check_shape() const;
    void plan_memory();
    void check_stream(CUstream stream) const;

    void pass(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
              const OutputView *outputs, CUstream stream);
    ImageArguments stage_images(const ImageView *images, int count, CUstream stream);
    ResultArguments result_arguments(const OutputView *outputs, int count) const;
    void upload_transforms(const PixelTransform *transforms, int count, CUstream stream);
    void fetch_results(const OutputView *outputs, int count, CUstream stream);
    PassGraph &graph(int count, const ImageArguments &image, const ResultArguments &result);
    void wait_for_staging();
    void recover(CUstream stream);

    const std::shared_ptr<const Program> program_;
    const PassShape shape_;
    size_t zeroed_bytes_ = 0;
    DeviceMemory memory_;
    ContextMemory places_;
    CUdeviceptr image_ = 0, result_ = 0; // staging on the device
    PinnedMemory pinned_;
    std::byte *pinned_image_ = nullptr, *pinned_result_ = nullptr, *pinned_transforms_ = nullptr;
    std::vector<PixelTransform> transforms_; // that are on the device
    Stream stream_;
    Event done_; // after the last pass, if it was not waited for
    bool pending_ = false;
    bool broken_ = false;             // the last pass failed: scratch memory may hold anything
    std::map<int, PassGraph> graphs_; // by number of images
};

CudaContext::CudaContext(std::shared_ptr<const Program> program, const PassShape &shape)
    : program_(std::move(program)), shape_(shape) {
    check_shape();
    plan_memory();
    stream_ = make_stream(program_->device());
    done_ = make_event(program_->device());
    if (zeroed_bytes_ > 0)
        api().fill_bytes(places_.zeroed, 0, zeroed_bytes_, stream_.get());
    // The graph for a full batch is made now, so that a pass allocates nothing.
    ImageArguments image;
    image.data = image_;
    ResultArguments result;
    result.type = plan().has_mask() ? ResultType::mask : ResultType::probability;
    result.data = result_;
    graph(shape_.count, image, result).upload(stream_.get());
    api().stream_synchronize(stream_.get());
}

CudaContext::~CudaContext() {
    // Memory must not be freed under a pass that the caller has not waited for.
    if (pending_ && program_->device()->in_its_process())
        api().event_synchronize.quietly(done_.get());
}

void CudaContext::check_shape() const {
    constexpr int64_t largest = std::numeric_limits<int32_t>::max();
    for (const Buffer &buffer : plan().buffers) {
        const int64_t height = buffer.height.at(shape_.height), width = buffer.width.at(shape_.width);
        if (height > largest || width > largest || width * buffer.channels > widest_row)
            throw Error(UF_ERR_INVALID_ARGUMENT,
                        message("an image of ", shape_.height, " x ", shape_.width,
                                " pixels is too wide for one pass on a GPU: ", in_quotes(buffer.name), " has ", width,
                                " x ", buffer.channels, " values per row, at most ", widest_row,
                                " are possible; use smaller tiles"));
    }
}

// One allocation on the device: slots, scratch, staging.  One on the host: staging.
void CudaContext::plan_memory() {
    const int64_t element = element_bytes(storage_of(program_->selection().precision));
    std::vector<int64_t> slots(static_cast<size_t>(plan().slots), 0);
    for (const Buffer &buffer : plan().buffers) {
        if (buffer.slot < 0)
            continue;
        int64_t &slot = slots[static_cast<size_t>(buffer.slot)];
        slot = std::max(slot, checked_product({shape_.count, buffer.height.at(shape_.height),
                                               buffer.width.at(shape_.width), buffer.channels, element}));
    }
    int64_t zeroed = 0, scratch = 0;
    for (const Step &step : program_->selection().steps) {
        const LaunchSizes sizes = launch_sizes(plan(), *step.op, shape_);
        for (const std::vector<Candidate> &candidates : step.candidates)
            if (!candidates.empty())
                for (const KernelArgument &argument : Program::chosen(candidates).kernel->arguments)
                    if (argument.kind == KernelArgument::Kind::scratch) {
                        int64_t &bytes = argument.zeroed ? zeroed : scratch;
                        bytes = std::max(bytes, axis_value(argument.bytes, sizes));
                    }
    }
    zeroed_bytes_ = static_cast<size_t>(zeroed);
    const int64_t images = image_bytes(plan(), shape_, PixelType::float32);
    const int64_t results =
        checked_product({shape_.count, shape_.height, shape_.width, plan().output_channels, sizeof(float)});

    Layout host;
    const size_t host_image = host.take(images), host_result = host.take(results);
    const size_t host_transforms = host.take(shape_.count * transform_bytes);
    Layout layout;
    std::vector<size_t> slot_offsets;
    for (const int64_t bytes : slots)
        slot_offsets.push_back(layout.take(bytes));
    const size_t zeroed_offset = layout.take(zeroed), scratch_offset = layout.take(scratch);
    const size_t image = layout.take(images), result = layout.take(results);
    const size_t transforms = layout.take(shape_.count * transform_bytes);

    memory_ = allocate_device(program_->device(), layout.bytes());
    for (const size_t offset : slot_offsets)
        places_.slots.push_back(memory_.get() + offset);
    places_.zeroed = memory_.get() + zeroed_offset;
    places_.scratch = memory_.get() + scratch_offset;
    places_.transforms = memory_.get() + transforms;
    image_ = memory_.get() + image;
    result_ = memory_.get() + result;
    pinned_ = allocate_pinned(program_->device(), host.bytes());
    auto *const pinned = static_cast<std::byte *>(pinned_.get());
    pinned_image_ = pinned + host_image;
    pinned_result_ = pinned + host_result;
    pinned_transforms_ = pinned + host_transforms;
    transforms_.reserve(static_cast<size_t>(shape_.count));
}

PassGraph &CudaContext::graph(int count, const ImageArguments &image, const ResultArguments &result) {
    const auto found = graphs_.find(count);
    if (found != graphs_.end())
        return found->second;
    const PassShape shape{count, shape_.height, shape_.width};
    return graphs_.try_emplace(count, *program_, shape, places_, image, result).first->second;
}

void CudaContext::run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                      const OutputView *outputs, void *caller_stream) {
    program_->device()->guarded([&] {
        CUstream stream = stream_.get();
        if (caller_stream != nullptr) {
            stream = static_cast<CUstream>(caller_stream);
            check_stream(stream);
        }
        int64_t stride = 0;
        const bool together =
            (!images[0].on_device ||
             regular(images, count, static_cast<int64_t>(pixel_bytes(images[0].type)), stride)) &&
            (!outputs[0].on_device || regular(outputs, count, outputs[0].type == ResultType::mask ? 1 : 4, stride));
        // Kernels take one distance between images; where there is none, each goes alone.
        const int step = together ? count : 1;
        try {
            recover(stream);
            for (int i = 0; i < count; i += step)
                pass(images + i, transforms + i, step, logit_threshold, outputs + i, stream);
        } catch (...) {
            broken_ = true;
            api().stream_synchronize.quietly(stream);
            throw;
        }
    });
}

void CudaContext::check_stream(CUstream stream) const {
    CUcontext context = nullptr;
    api().stream_get_context(stream, &context);
    if (context != program_->device()->context())
        throw Error(UF_ERR_INVALID_ARGUMENT, message("cuda_stream belongs to another device or CUDA context than this "
                                                     "engine, which runs in the primary context of cuda:",
                                                     program_->device()->ordinal()));
}

// Puts scratch memory in order after a pass that failed half way.
void CudaContext::recover(CUstream stream) {
    if (!broken_)
        return;
    wait_for_staging();
    transforms_.clear();
    if (zeroed_bytes_ > 0)
        api().fill_bytes(places_.zeroed, 0, zeroed_bytes_, stream);
    broken_ = false;
}

// Until no earlier pass on a caller's stream reads what is in pinned memory.
void CudaContext::wait_for_staging() {
    if (pending_)
        api().event_synchronize(done_.get());
    pending_ = false;
}

void CudaContext::pass(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                       const OutputView *outputs, CUstream stream) {
    // All passes share the arena: they follow each other even if they are on different streams.  (Comparing handles
    // would not do: a stream may have been destroyed since, and its handle given to another.)
    if (pending_)
        api().stream_wait_event(stream, done_.get(), 0);
    const ImageArguments image = stage_images(images, count, stream);
    upload_transforms(transforms, count, stream);
    ResultArguments result = result_arguments(outputs, count);
    result.logit_threshold = logit_threshold;
    PassGraph &pass_graph = graph(count, image, result);
    pass_graph.set(image, result);
    pass_graph.launch(stream);
    if (!outputs[0].on_device) {
        fetch_results(outputs, count, stream);
        pending_ = false;
    } else if (stream == stream_.get()) {
        api().stream_synchronize(stream);
        pending_ = false;
    } else {
        api().event_record(done_.get(), stream);
        pending_ = true;
    }
}

ImageArguments CudaContext::stage_images(const ImageView *images, int count, CUstream stream) {
    ImageArguments image;
    image.type = images[0].type;
    const auto item = static_cast<int64_t>(pixel_bytes(image.type));
    if (images[0].on_device) {
        int64_t image_stride = 0;
        regular(images, count, item, image_stride);
        image.data = reinterpret_cast<CUdeviceptr>(images[0].data);
        image.strides = {image_stride / item, images[0].row_stride / item, images[0].pixel_stride / item,
                         images[0].channel_stride / item};
        return image;
    }
    wait_for_staging();
    const PassShape one{1, shape_.height, shape_.width};
    const int64_t bytes = image_bytes(plan(), one, image.type);
    for (int i = 0; i < count; ++i)
        copy_tight(images[i], one, plan().channels, pinned_image_ + i * bytes);
    api().copy_to_device(image_, pinned_image_, static_cast<size_t>(count * bytes), stream);
    image.data = image_;
    image.strides = {bytes / item, int64_t{shape_.width} * plan().channels, plan().channels, 1};
    return image;
}

// Usually the same for all calls, and then already there.
void CudaContext::upload_transforms(const PixelTransform *transforms, int count, CUstream stream) {
    const auto bytes = static_cast<size_t>(count) * transform_bytes;
    if (transforms_.size() >= static_cast<size_t>(count) && std::memcmp(transforms_.data(), transforms, bytes) == 0)
        return;
    wait_for_staging();
    transforms_.clear(); // until the new ones are on their way
    std::memcpy(pinned_transforms_, transforms, bytes);
    api().copy_to_device(places_.transforms, pinned_transforms_, bytes, stream);
    transforms_.assign(transforms, transforms + count);
}

ResultArguments CudaContext::result_arguments(const OutputView *outputs, int count) const {
    ResultArguments result;
    result.type = outputs[0].type;
    const int64_t height = shape_.height - 2 * int64_t{plan().margin},
                  width = shape_.width - 2 * int64_t{plan().margin};
    const int64_t item = result.type == ResultType::mask ? 1 : sizeof(float);
    if (outputs[0].on_device) {
        int64_t image_stride = 0;
        regular(outputs, count, item, image_stride);
        result.data = reinterpret_cast<CUdeviceptr>(outputs[0].data);
        result.strides = {image_stride / item, outputs[0].row_stride / item};
        return result;
    }
    const int64_t row = width * static_cast<int64_t>(result_bytes(result.type, plan())) / item;
    result.data = result_;
    result.strides = {height * row, row};
    return result;
}

void CudaContext::fetch_results(const OutputView *outputs, int count, CUstream stream) {
    const int64_t height = shape_.height - 2 * int64_t{plan().margin},
                  width = shape_.width - 2 * int64_t{plan().margin};
    const auto row_bytes = static_cast<size_t>(width) * result_bytes(outputs[0].type, plan());
    const size_t bytes = static_cast<size_t>(height) * row_bytes;
    api().copy_to_host(pinned_result_, result_, static_cast<size_t>(count) * bytes, stream);
    api().stream_synchronize(stream);
    for (int i = 0; i < count; ++i)
        for (int64_t y = 0; y < height; ++y)
            std::memcpy(outputs[i].data + y * outputs[i].row_stride,
                        pinned_result_ + static_cast<size_t>(i) * bytes + static_cast<size_t>(y) * row_bytes,
                        row_bytes);
}

} // namespace

std::unique_ptr<uf::Context> make_cuda_context(std::shared_ptr<const Program> program, const PassShape &shape) {
    std::unique_ptr<uf::Context> context;
    program->device()->guarded([&] { context = std::make_unique<CudaContext>(program, shape); });
    return context;
}

} // namespace uf::cuda
