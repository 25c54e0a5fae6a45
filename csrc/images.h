// The caller's images and results, checked once, and what is done to pixels outside the network: statistics, mirrored
// copies, bilinear resizing, thresholding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "executor.h"
#include "plan.h"
#include "unet_fast.h"

namespace uf {

// Longest side of an image.
constexpr int64_t largest_image_side = int64_t{1} << 20;

size_t pixel_bytes(PixelType type);

// One or more images of the same size, with every default filled in.
struct ImageBatch {
    ImageView first;
    int64_t image_stride = 0; // bytes, any sign
    int count = 1;
    int64_t height = 0, width = 0;
    int channels = 1;
    double max_value = 255.0; // what counts as 1

    ImageView operator[](int64_t index) const {
        ImageView view = first;
        view.data += index * image_stride;
        return view;
    }
};

// Where their results go.
struct OutputBatch {
    OutputView first;
    int64_t image_stride = 0; // bytes, any sign

    OutputView operator[](int64_t index) const {
        OutputView view = first;
        view.data += index * image_stride;
        return view;
    }
};

// What uf_image_describe gives; throws UF_ERR_INVALID_ARGUMENT.
uf_image describe_image(const void *data, const char *encoding, int32_t height, int32_t width,
                        int64_t row_stride_bytes);

// Throw UF_ERR_INVALID_ARGUMENT for what unet_fast.h does not allow, UF_ERR_UNSUPPORTED for the mask of a network that
// has none.  Whether device memory is accepted is the executor's to say.
ImageBatch check_image(const uf_image &image, const Plan &plan);
OutputBatch check_output(const uf_output &output, int count, int64_t height, int64_t width, const Plan &plan);

// Throws UF_ERR_INVALID_ARGUMENT with the position of the first NaN or infinity.  Host memory only, as all that follow.
void require_finite(const ImageBatch &images);

// The normalisation of one image; "standardise" takes mean and population standard deviation of all its pixels and
// channels, in float64.
PixelTransform pixel_transform(const Plan &plan, const ImageBatch &images, int index);

// Bytes per pixel of a result.
size_t result_bytes(ResultType type, const Plan &plan);

// Which pixel of an axis of `size` stands at `position`, which may lie outside: mirrored without repeating the edge, as
// often as it takes ("reflect" of numpy.pad); a single pixel is repeated.
int64_t mirrored(int64_t position, int64_t size);

// Copies the window of `rows` x `columns` pixels at (top, left) to `target`, tight, mirrored outside the image.
void copy_mirrored(const ImageBatch &images, int index, int64_t top, int64_t left, int64_t rows, int64_t columns,
                   std::byte *target);

// The view of a tight copy.
ImageView tight_view(const std::byte *data, PixelType type, int64_t width, int channels);

// Bilinear interpolation between pixel centres, without smoothing, edges repeated (as torch.nn.functional.interpolate
// with align_corners=False).  Writes one row of the resized image: `target_width` x channels floats.
void resize_row(const ImageView &source, int64_t height, int64_t width, int channels, int64_t target_row,
                int64_t target_height, int64_t target_width, float *target);

// The number of which the sigmoid is `probability`, in (0, 1).
float logit(float probability);

// Writes a row of probabilities to a result as its type wants it.
void write_row(const float *probability, int64_t width, const Plan &plan, float threshold, const OutputView &output,
               int64_t row);

} // namespace uf
