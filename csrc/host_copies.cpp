#include "host_copies.h"

#include <algorithm>

namespace uf {

HostImages::HostImages(const Executor &executor, const ImageBatch &images) : batch_(images) {
    if (!images.first.on_device)
        return;
    // All bytes from the first pixel in memory to the last, so that the strides stay as they are.
    const ImageView &view = images.first;
    int64_t low = 0, high = static_cast<int64_t>(pixel_bytes(view.type));
    const auto span = [&](int64_t size, int64_t stride) {
        low += std::min<int64_t>(0, (size - 1) * stride);
        high += std::max<int64_t>(0, (size - 1) * stride);
    };
    span(images.count, images.image_stride);
    span(images.height, view.row_stride);
    span(images.width, view.pixel_stride);
    span(images.channels, view.channel_stride);
    pixels_.resize(static_cast<size_t>(high - low));
    executor.copy(pixels_.data(), view.data + low, pixels_.size());
    batch_.first.data = pixels_.data() - low;
    batch_.first.on_device = false;
}

HostOutputs::HostOutputs(const Executor &executor, const Plan &plan, const OutputBatch &outputs, int count,
                         int64_t height, int64_t width)
    : executor_(executor), outputs_(outputs), count_(count), height_(height),
      row_bytes_(width * static_cast<int64_t>(result_bytes(outputs.first.type, plan))), batch_(outputs) {
    if (!outputs.first.on_device)
        return;
    results_.resize(static_cast<size_t>(count * height * row_bytes_));
    batch_.first = {results_.data(), outputs.first.type, row_bytes_};
    batch_.image_stride = height * row_bytes_;
}

void HostOutputs::write_back() const {
    if (!outputs_.first.on_device)
        return;
    const bool tight = outputs_.first.row_stride == row_bytes_;
    for (int image = 0; image < count_; ++image) {
        const OutputView to = outputs_[image];
        const OutputView from = batch_[image];
        const int64_t rows = tight ? 1 : height_; // copied one by one
        for (int64_t row = 0; row < rows; ++row)
            executor_.copy(to.data + row * to.row_stride, from.data + row * row_bytes_,
                           static_cast<size_t>(height_ / rows * row_bytes_));
    }
}

} // namespace uf
