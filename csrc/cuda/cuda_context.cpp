#include "cuda/cuda_context.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "cuda/pass_graph.h"
#include "cuda/pass_memory.h"
#include "error.h"
#include "images.h"
#include "message.h"

namespace uf::cuda {

namespace {

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
    void start_pass(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                    const OutputView *outputs) override;
    void finish_pass() override;
    std::byte *result_staging() override {
        if (pinned_result_.get() == nullptr)
            program_->device()->guarded([&] { pinned_result(); });
        return pinned_result();
    }
    PassShape shape() const override { return shape_; }
    double bytes() const override { return static_cast<double>(memory_.bytes + pinned_bytes_); }

  private:
    const Plan &plan() const { return program_->plan(); }
    const Driver &api() const { return program_->device()->api(); }

    // Made at the first use: a float32 image and float32 probabilities of a full batch, which callers who keep theirs
    // on the device never need.
    std::byte *pinned_image() { return pinned(pinned_image_, image_bytes(plan(), shape_, PixelType::float32)); }
    std::byte *pinned_result() { return pinned(pinned_result_, probability_bytes(plan(), shape_)); }
    std::byte *pinned(PinnedMemory &memory, int64_t bytes);
    void check_stream(CUstream stream) const;

    // Runs `body`; if it fails, waits until the stream is idle and notes that memory may hold anything.
    template <class Body> void attempt(CUstream stream, const Body &body);
    // Leaves the results where they belong, or on their way to pinned memory.
    void enqueue(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                 const OutputView *outputs, CUstream stream);
    // The same for those that fit one launch; in pinned memory, from the `first` of a batch.
    void launch(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                const OutputView *outputs, int first, CUstream stream);
    ImageArguments stage_images(const ImageView *images, int count, CUstream stream);
    ResultArguments result_arguments(const OutputView *outputs, int count) const;
    void upload_transforms(const PixelTransform *transforms, int count, CUstream stream);
    void leave_pending(CUstream stream);
    std::array<int64_t, 2> result_size() const {
        return {shape_.height - 2 * int64_t{plan().margin}, shape_.width - 2 * int64_t{plan().margin}};
    }
    size_t tight_result_bytes(ResultType type) const; // of one image
    void hand_out(const OutputView *outputs, int count) const;
    PassGraph &graph(int count, const ImageArguments &image, const ResultArguments &result);
    void wait_for_staging();
    void recover(CUstream stream);

    const std::shared_ptr<const Program> program_;
    const PassShape shape_;
    const PassMemory memory_;
    PinnedMemory pinned_image_, pinned_result_, pinned_transforms_;
    size_t pinned_bytes_ = 0;                // of all of them
    std::vector<PixelTransform> transforms_; // that are on the device
    Stream stream_;
    Event done_; // after the last pass, if it was not waited for
    bool pending_ = false;
    std::vector<OutputView> started_; // where the results of `start_pass` go
    bool broken_ = false;             // the last pass failed: scratch memory may hold anything
    std::map<int, PassGraph> graphs_; // by number of images
};

CudaContext::CudaContext(std::shared_ptr<const Program> program, const PassShape &shape)
    : program_(std::move(program)), shape_(shape), memory_(allocate_pass_memory(*program_, shape)) {
    pinned(pinned_transforms_, shape_.count * transform_bytes);
    transforms_.reserve(static_cast<size_t>(shape_.count));
    started_.reserve(static_cast<size_t>(shape_.count));
    stream_ = make_stream(program_->device());
    done_ = make_event(program_->device());
    if (memory_.zeroed_bytes > 0)
        api().fill_bytes(memory_.zeroed, 0, memory_.zeroed_bytes, stream_.get());
    // The graph for a full batch is made now, so that a pass allocates nothing.
    ImageArguments image;
    image.data = memory_.image;
    ResultArguments result;
    result.type = plan().has_mask() ? ResultType::mask : ResultType::probability;
    result.data = memory_.result;
    result.written = result_size();
    graph(shape_.count, image, result).upload(stream_.get());
    api().stream_synchronize(stream_.get());
}

CudaContext::~CudaContext() {
    // Memory must not be freed under a pass that the caller has not waited for.
    if (!pending_)
        return;
    try {
        program_->device()->guarded([&] { api().event_synchronize(done_.get()); });
    } catch (const Error &) {
        // The GPU is lost, or this is a forked child: nothing runs there any more.
    }
}

std::byte *CudaContext::pinned(PinnedMemory &memory, int64_t bytes) {
    if (memory.get() == nullptr) {
        const auto size = static_cast<size_t>(bytes);
        require_memory(shape_, static_cast<double>(size));
        memory = allocate_pinned(program_->device(), size);
        pinned_bytes_ += size;
    }
    return static_cast<std::byte *>(memory.get());
}

PassGraph &CudaContext::graph(int count, const ImageArguments &image, const ResultArguments &result) {
    const auto found = graphs_.find(count);
    if (found != graphs_.end())
        return found->second;
    const PassShape shape{count, shape_.height, shape_.width};
    return graphs_.try_emplace(count, *program_, shape, memory_, image, result, whole_pass(*program_)).first->second;
}

void CudaContext::run(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                      const OutputView *outputs, void *caller_stream) {
    program_->device()->guarded([&] {
        CUstream stream = stream_.get();
        if (caller_stream != nullptr) {
            stream = static_cast<CUstream>(caller_stream);
            check_stream(stream);
        }
        attempt(stream, [&] {
            enqueue(images, transforms, count, logit_threshold, outputs, stream);
            if (outputs[0].on_device && stream != stream_.get()) {
                leave_pending(stream);
                return;
            }
            api().stream_synchronize(stream);
            pending_ = false;
            hand_out(outputs, count);
        });
    });
}

void CudaContext::start_pass(const ImageView *images, const PixelTransform *transforms, int count,
                             float logit_threshold, const OutputView *outputs) {
    program_->device()->guarded([&] {
        attempt(stream_.get(), [&] {
            enqueue(images, transforms, count, logit_threshold, outputs, stream_.get());
            leave_pending(stream_.get());
            started_.assign(outputs, outputs + count);
        });
    });
}

void CudaContext::finish_pass() {
    program_->device()->guarded([&] {
        attempt(stream_.get(), [&] {
            wait_for_staging();
            hand_out(started_.data(), static_cast<int>(started_.size()));
        });
    });
}

template <class Body> void CudaContext::attempt(CUstream stream, const Body &body) {
    try {
        recover(stream);
        body();
    } catch (...) {
        broken_ = true;
        api().stream_synchronize.quietly(stream);
        throw;
    }
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
    if (memory_.zeroed_bytes > 0)
        api().fill_bytes(memory_.zeroed, 0, memory_.zeroed_bytes, stream);
    broken_ = false;
}

// Until no earlier pass on a caller's stream reads what is in pinned memory.
void CudaContext::wait_for_staging() {
    if (pending_)
        api().event_synchronize(done_.get());
    pending_ = false;
}

// Kernels take one distance between images and one between results; where there is none, each goes alone.
void CudaContext::enqueue(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                          const OutputView *outputs, CUstream stream) {
    int64_t stride = 0;
    const bool together =
        (!images[0].on_device || regular(images, count, static_cast<int64_t>(pixel_bytes(images[0].type)), stride)) &&
        (!outputs[0].on_device || regular(outputs, count, outputs[0].type == ResultType::mask ? 1 : 4, stride));
    const int step = together ? count : 1;
    for (int first = 0; first < count; first += step) {
        launch(images + first, transforms + first, step, logit_threshold, outputs + first, first, stream);
        if (first + step < count)
            leave_pending(stream);
    }
}

void CudaContext::launch(const ImageView *images, const PixelTransform *transforms, int count, float logit_threshold,
                         const OutputView *outputs, int first, CUstream stream) {
    // All passes share the arena: they follow each other even if they are on different streams.  (Comparing handles
    // would not do: a stream may have been destroyed since, and its handle given to another.)
    if (pending_)
        api().stream_wait_event(stream, done_.get(), 0);
    std::byte *const staged = outputs[0].on_device ? nullptr : pinned_result();
    const ImageArguments image = stage_images(images, count, stream);
    upload_transforms(transforms, count, stream);
    ResultArguments result = result_arguments(outputs, count);
    result.logit_threshold = logit_threshold;
    PassGraph &pass_graph = graph(count, image, result);
    pass_graph.set(image, result);
    pass_graph.launch(stream);
    if (!outputs[0].on_device) {
        const size_t bytes = tight_result_bytes(result.type);
        api().copy_to_host(staged + static_cast<size_t>(first) * bytes, memory_.result,
                           static_cast<size_t>(count) * bytes, stream);
    }
}

void CudaContext::leave_pending(CUstream stream) {
    api().event_record(done_.get(), stream);
    pending_ = true;
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
    std::byte *const staged = pinned_image();
    for (int i = 0; i < count; ++i)
        copy_tight(images[i], one, plan().channels, staged + i * bytes);
    api().copy_to_device(memory_.image, staged, static_cast<size_t>(count * bytes), stream);
    image.data = memory_.image;
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
    std::memcpy(pinned_transforms_.get(), transforms, bytes);
    api().copy_to_device(memory_.transforms, pinned_transforms_.get(), bytes, stream);
    transforms_.assign(transforms, transforms + count);
}

ResultArguments CudaContext::result_arguments(const OutputView *outputs, int count) const {
    ResultArguments result;
    result.type = outputs[0].type;
    const auto [height, width] = result.written = result_size();
    const int64_t item = result.type == ResultType::mask ? 1 : sizeof(float);
    if (outputs[0].on_device) {
        int64_t image_stride = 0;
        regular(outputs, count, item, image_stride);
        result.data = reinterpret_cast<CUdeviceptr>(outputs[0].data);
        result.strides = {image_stride / item, outputs[0].row_stride / item};
        if (outputs[0].rows != 0)
            result.written = {outputs[0].rows, outputs[0].columns};
        return result;
    }
    const int64_t row = width * static_cast<int64_t>(result_bytes(result.type, plan())) / item;
    result.data = memory_.result;
    result.strides = {height * row, row};
    return result;
}

size_t CudaContext::tight_result_bytes(ResultType type) const {
    const auto [height, width] = result_size();
    return static_cast<size_t>(height * width) * result_bytes(type, plan());
}

// Copies what has arrived in pinned memory to where the caller wants it, unless that is there.
void CudaContext::hand_out(const OutputView *outputs, int count) const {
    if (count == 0 || outputs[0].on_device)
        return;
    const int64_t height = result_size()[0];
    const size_t bytes = tight_result_bytes(outputs[0].type), row_bytes = bytes / static_cast<size_t>(height);
    for (int i = 0; i < count; ++i) {
        const std::byte *const from =
            static_cast<const std::byte *>(pinned_result_.get()) + static_cast<size_t>(i) * bytes;
        if (outputs[i].data == from)
            continue;
        for (int64_t y = 0; y < height; ++y)
            std::memcpy(outputs[i].data + y * outputs[i].row_stride, from + static_cast<size_t>(y) * row_bytes,
                        row_bytes);
    }
}

} // namespace

std::unique_ptr<uf::Context> make_cuda_context(std::shared_ptr<const Program> program, const PassShape &shape) {
    std::unique_ptr<uf::Context> context;
    program->device()->guarded([&] { context = std::make_unique<CudaContext>(program, shape); });
    return context;
}

} // namespace uf::cuda
