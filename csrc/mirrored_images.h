// Images in device memory with what lies around them, mirrored: a copy that does not leave that memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "executor.h"
#include "images.h"

namespace uf {

class MirroredImages {
  public:
    // Whether rows of these images can be copied as they lie: pixels rise in memory within a row, rows within an image.
    static bool possible(const ImageBatch &images);

    // The window of `rows` x `columns` pixels of each image that begins `border` pixels above and left of it, and holds
    // all of it; mirrored as by copy_mirrored.
    MirroredImages(const Executor &executor, const ImageBatch &images, int64_t border, int64_t rows, int64_t columns);
    // Lives as long as this.
    const ImageBatch &batch() const { return batch_; }

  private:
    std::shared_ptr<std::byte> memory_;
    ImageBatch batch_;
};

} // namespace uf
