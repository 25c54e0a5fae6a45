// Images and results in device memory, copied to the host and back where the engine has to look at pixels itself: tiles
// that overlap or reach beyond the image, resizing, statistics.
#pragma once

#include <cstddef>
#include <vector>

#include "executor.h"
#include "images.h"
#include "plan.h"

namespace uf {

// The images as they are where they are in host memory, else copies that live as long as this.
class HostImages {
  public:
    HostImages(const Executor &executor, const ImageBatch &images);
    const ImageBatch &batch() const { return batch_; }

  private:
    ImageBatch batch_;
    std::vector<std::byte> pixels_;
};

// Likewise a place for results of `count` images of height x width, which `write_back` brings to where they belong.
class HostOutputs {
  public:
    HostOutputs(const Executor &executor, const Plan &plan, const OutputBatch &outputs, int count, int64_t height,
                int64_t width);
    const OutputBatch &batch() const { return batch_; }
    void write_back() const;

  private:
    const Executor &executor_;
    const OutputBatch outputs_;
    const int count_;
    const int64_t height_, row_bytes_;
    OutputBatch batch_;
    std::vector<std::byte> results_;
};

} // namespace uf
