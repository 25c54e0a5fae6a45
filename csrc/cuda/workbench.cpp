#include "cuda/workbench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "images.h"

namespace uf::cuda {

namespace {

constexpr double graph_seconds = 1e-3; // of one measured graph, at least: an event is exact to half a microsecond,
constexpr int most_rounds = 400;       // unless that took more rounds than this, beside which its start counts little

} // namespace

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Workbench::Workbench(const Program &program, const PassShape &shape)
    : program_(program), shape_(shape), memory_(allocate_pass_memory(program, shape)),
      stream_(make_stream(program.device())), begin_(make_event(program.device(), CU_EVENT_DEFAULT)),
      end_(make_event(program.device(), CU_EVENT_DEFAULT)) {
    zero_scratch();
    set_image(PixelType::uint8);
    set_result(program.plan().has_mask() ? ResultType::mask : ResultType::probability);
}

void Workbench::upload(const void *data, size_t bytes, CUdeviceptr to) {
    api().copy_to_device(to, data, bytes, stream_.get());
    api().stream_synchronize(stream_.get());
}

void Workbench::set_image(PixelType type) {
    const Plan &plan = program_.plan();
    const auto bytes = static_cast<size_t>(image_bytes(plan, shape_, type));
    std::vector<std::byte> pixels(bytes);
    std::mt19937 random(0); // the same everywhere, so that two runs compare the same numbers
    if (type == PixelType::float32) {
        for (size_t at = 0; at < bytes; at += sizeof(float)) {
            const float value = static_cast<float>(random()) * 0x1p-32F;
            std::memcpy(pixels.data() + at, &value, sizeof value);
        }
    } else {
        for (std::byte &value : pixels)
            value = static_cast<std::byte>(random());
    }
    upload(pixels.data(), bytes, memory_.image);

    ImageBatch images;
    images.first = tight_view(pixels.data(), type, shape_.width, plan.channels);
    images.image_stride = static_cast<int64_t>(bytes) / shape_.count;
    images.count = shape_.count;
    images.height = shape_.height;
    images.width = shape_.width;
    images.channels = plan.channels;
    images.max_value = type == PixelType::float32 ? 1.0 : type == PixelType::uint16 ? 65535.0 : 255.0;
    std::vector<PixelTransform> transforms;
    for (int index = 0; index < shape_.count; ++index)
        transforms.push_back(pixel_transform(plan, images, index));
    upload(transforms.data(), transforms.size() * sizeof(PixelTransform), memory_.transforms);

    const int64_t row = int64_t{shape_.width} * plan.channels;
    image_ = {type, memory_.image, {shape_.height * row, row, plan.channels, 1}};
}

void Workbench::set_result(ResultType type) {
    const Plan &plan = program_.plan();
    const int64_t height = shape_.height - 2 * int64_t{plan.margin}, width = shape_.width - 2 * int64_t{plan.margin};
    const int64_t row = width * (type == ResultType::mask ? 1 : plan.output_channels);
    result_ = {type, memory_.result, {height * row, row}, {height, width}, 0.0F};
}

std::vector<std::pair<CUdeviceptr, size_t>> Workbench::places(const Op &op) const {
    const Plan &plan = program_.plan();
    if (op.outputs.empty()) {
        const int64_t item = result_.type == ResultType::mask ? 1 : sizeof(float);
        return {{memory_.result, static_cast<size_t>(shape_.count * result_.strides[0] * item)}};
    }
    std::vector<std::pair<CUdeviceptr, size_t>> result;
    for (const int output : op.outputs) {
        const Buffer &buffer = plan.buffers[static_cast<size_t>(output)];
        const int64_t elements =
            shape_.count * buffer.height.at(shape_.height) * buffer.width.at(shape_.width) * buffer.channels;
        const int64_t element = element_bytes(storage_of(program_.selection().precision));
        result.emplace_back(memory_.slots[static_cast<size_t>(buffer.slot)], static_cast<size_t>(elements * element));
    }
    return result;
}

void Workbench::zero_scratch() {
    if (memory_.zeroed_bytes > 0)
        api().fill_bytes(memory_.zeroed, 0, memory_.zeroed_bytes, stream_.get());
}

void Workbench::poison_outputs(const Op &op) {
    for (const auto &[address, bytes] : places(op))
        api().fill_bytes(address, 0xFF, bytes, stream_.get()); // NaN in every float format
}

std::vector<std::byte> Workbench::outputs(const Op &op) {
    std::vector<std::byte> result;
    for (const auto &[address, bytes] : places(op)) {
        result.resize(result.size() + bytes);
        api().copy_to_host(result.data() + result.size() - bytes, address, bytes, stream_.get());
        api().stream_synchronize(stream_.get());
    }
    return result;
}

std::unique_ptr<PassGraph> Workbench::graph_of(const std::vector<PlannedLaunch> &launches) const {
    return std::make_unique<PassGraph>(program_, shape_, memory_, image_, result_, launches);
}

void Workbench::run(const std::vector<PlannedLaunch> &launches) {
    zero_scratch(); // whatever the kernels before have left there
    const std::unique_ptr<PassGraph> graph = graph_of(launches);
    graph->launch(stream_.get());
    api().stream_synchronize(stream_.get());
}

double Workbench::elapsed() {
    api().event_record(end_.get(), stream_.get());
    api().event_synchronize(end_.get());
    float milliseconds = 0;
    api().event_elapsed_time(&milliseconds, begin_.get(), end_.get());
    return static_cast<double>(milliseconds) * 1e-3;
}

Workbench::Clock::Clock(Workbench &bench, std::vector<PlannedLaunch> launches) : bench_(bench) {
    graph_ = bench.graph_of(launches);
    const double once = seconds(); // the untimed round loads the code
    rounds_ = static_cast<int>(std::clamp(std::ceil(graph_seconds / std::max(once, 1e-9)), 1.0, double{most_rounds}));
    if (rounds_ == 1)
        return;
    std::vector<PlannedLaunch> repeated;
    for (int round = 0; round < rounds_; ++round)
        repeated.insert(repeated.end(), launches.begin(), launches.end());
    graph_ = bench.graph_of(repeated);
}

double Workbench::Clock::seconds() {
    return bench_.timed([&](CUstream stream) { graph_->launch(stream); }) / rounds_;
}

} // namespace uf::cuda
