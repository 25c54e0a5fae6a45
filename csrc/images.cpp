#include "images.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "error.h"
#include "message.h"

namespace uf {

namespace {

template <class... Parts> [[noreturn]] void refuse(const Parts &...parts) {
    throw Error(UF_ERR_INVALID_ARGUMENT, message(parts...));
}

bool is_on_device(int32_t memory, const char *argument) {
    if (memory != UF_MEMORY_HOST && memory != UF_MEMORY_CUDA)
        refuse(argument, ".memory is ", memory, ", expected UF_MEMORY_HOST (0) or UF_MEMORY_CUDA (1)");
    return memory == UF_MEMORY_CUDA;
}

void check_side(const char *argument, int32_t side) {
    if (side < 1 || side > largest_image_side)
        refuse(argument, " is ", side, ", accepted are 1 to ", largest_image_side);
}

void check_alignment(const void *data, size_t alignment, const char *argument) {
    if (reinterpret_cast<uintptr_t>(data) % alignment != 0)
        refuse(argument, ".data must be a multiple of ", alignment, " bytes for its dtype");
}

int64_t multiply(int64_t a, int64_t b, const char *argument) {
    int64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || product > std::numeric_limits<int64_t>::max() / 8 ||
        product < -(std::numeric_limits<int64_t>::max() / 8))
        refuse(argument, ": size times stride is more than any memory holds");
    return product;
}

// Refuses what reaches further than `size_bytes` behind `data`; 0 is not checked.
void check_size(size_t size_bytes, int64_t end, const char *argument) {
    if (size_bytes != 0 && static_cast<uint64_t>(end) > size_bytes)
        refuse(argument, ".size_bytes is ", size_bytes, ", but these sizes and strides reach ", end, " bytes");
}

// Calls `function` with a null pointer of the pixel type.
template <class Function> auto with_type(PixelType type, const Function &function) {
    switch (type) {
    case PixelType::uint8:
        return function(static_cast<const uint8_t *>(nullptr));
    case PixelType::uint16:
        return function(static_cast<const uint16_t *>(nullptr));
    case PixelType::float32:
        break;
    }
    return function(static_cast<const float *>(nullptr));
}

template <class Pixel> Pixel load(const std::byte *data) {
    Pixel value;
    std::memcpy(&value, data, sizeof value);
    return value;
}

// Mean and population standard deviation of an image's values, as stored.  Row by row, in two passes, so that neither
// a large offset nor many pixels cost accuracy and the order is always the same.
template <class Pixel> std::pair<double, double> moments(const ImageBatch &images, const ImageView &view) {
    const auto sum_over_rows = [&](const auto &value) {
        double total = 0.0;
        for (int64_t y = 0; y < images.height; ++y) {
            double row_sum = 0.0;
            const std::byte *row = view.data + y * view.row_stride;
            for (int64_t x = 0; x < images.width; ++x)
                for (int channel = 0; channel < images.channels; ++channel)
                    row_sum += value(
                        static_cast<double>(load<Pixel>(row + x * view.pixel_stride + channel * view.channel_stride)));
            total += row_sum;
        }
        return total;
    };
    const double count = static_cast<double>(images.height) * static_cast<double>(images.width) * images.channels;
    const double mean = sum_over_rows([](double value) { return value; }) / count;
    const double variance = sum_over_rows([mean](double value) { return (value - mean) * (value - mean); }) / count;
    return {mean, std::sqrt(variance)};
}

// Where a pixel of a resized axis lies on the source: between `low` and `high`, `weight` of the way.
struct Sample {
    int64_t low, high;
    float weight;
};

Sample sample(int64_t position, int64_t target_size, int64_t size) {
    const double scale = static_cast<double>(size) / static_cast<double>(target_size);
    const double centre = std::max((static_cast<double>(position) + 0.5) * scale - 0.5, 0.0);
    const int64_t low = std::min(static_cast<int64_t>(centre), size - 1);
    return {low, std::min(low + 1, size - 1), static_cast<float>(centre - static_cast<double>(low))};
}

} // namespace

size_t pixel_bytes(PixelType type) {
    return with_type(type, [](auto *pixel) { return sizeof *pixel; });
}

uf_image describe_image(const void *data, const char *encoding, int32_t height, int32_t width,
                        int64_t row_stride_bytes) {
    static const struct Encoding {
        const char *name;
        int32_t dtype, stored, used; // channels
        bool reversed;
    } encodings[] = {
        {"mono8", UF_UINT8, 1, 1, false},   {"mono16", UF_UINT16, 1, 1, false}, {"rgb8", UF_UINT8, 3, 3, false},
        {"bgr8", UF_UINT8, 3, 3, true},     {"rgba8", UF_UINT8, 4, 3, false},   {"bgra8", UF_UINT8, 4, 3, true},
        {"rgb16", UF_UINT16, 3, 3, false},  {"bgr16", UF_UINT16, 3, 3, true},   {"rgba16", UF_UINT16, 4, 3, false},
        {"bgra16", UF_UINT16, 4, 3, true},  {"8UC1", UF_UINT8, 1, 1, false},    {"8UC3", UF_UINT8, 3, 3, false},
        {"16UC1", UF_UINT16, 1, 1, false},  {"16UC3", UF_UINT16, 3, 3, false},  {"32FC1", UF_FLOAT32, 1, 1, false},
        {"32FC3", UF_FLOAT32, 3, 3, false},
    };
    if (data == nullptr)
        refuse("data is NULL");
    if (encoding == nullptr)
        refuse("encoding is NULL");
    const auto *const found = std::find_if(std::begin(encodings), std::end(encodings), [&](const Encoding &candidate) {
        return std::strcmp(candidate.name, encoding) == 0;
    });
    if (found == std::end(encodings)) {
        std::string names;
        for (const Encoding &candidate : encodings)
            names += message(names.empty() ? "" : ", ", candidate.name);
        refuse("encoding is ", in_quotes(encoding), ", accepted are ", names, "; set the strides of others by hand");
    }
    check_side("height", height);
    check_side("width", width);
    const auto item = static_cast<int64_t>(found->dtype == UF_FLOAT32 ? 4 : found->dtype == UF_UINT16 ? 2 : 1);
    const int64_t row_bytes = width * found->stored * item;
    if (row_stride_bytes != 0 && row_stride_bytes < row_bytes && row_stride_bytes > -row_bytes)
        refuse("row_stride_bytes is ", row_stride_bytes, ", but ", width, " pixels of ", encoding, " are ", row_bytes);
    uf_image image = {};
    image.data = static_cast<const std::byte *>(data) + (found->reversed ? (found->used - 1) * item : 0);
    image.dtype = found->dtype;
    image.height = height;
    image.width = width;
    image.channels = found->used;
    image.row_stride_bytes = row_stride_bytes != 0 ? row_stride_bytes : row_bytes;
    image.pixel_stride_bytes = found->stored * item;
    image.channel_stride_bytes = found->reversed ? -item : item;
    return image;
}

ImageBatch check_image(const uf_image &image, const Plan &plan) {
    if (image.data == nullptr)
        refuse("image.data is NULL");
    ImageBatch batch;
    batch.first.on_device = is_on_device(image.memory, "image");
    switch (image.dtype) {
    case UF_UINT8:
        batch.first.type = PixelType::uint8;
        batch.max_value = 255.0;
        break;
    case UF_UINT16:
        batch.first.type = PixelType::uint16;
        batch.max_value = 65535.0;
        break;
    case UF_FLOAT32:
        batch.first.type = PixelType::float32;
        batch.max_value = 1.0;
        break;
    default:
        refuse("image.dtype is ", image.dtype, ", accepted are UF_UINT8 (1), UF_UINT16 (2) and UF_FLOAT32 (3)");
    }
    if (image.count < 0)
        refuse("image.count is ", image.count, ", expected at least 1 (0 means 1)");
    check_side("image.height", image.height);
    check_side("image.width", image.width);
    if (image.channels != 0 && image.channels != plan.channels)
        refuse("image.channels is ", image.channels, ", this network takes ", plan.channels);
    if (image.max_value != 0.0F) {
        if (!(image.max_value >= 1e-6F && image.max_value <= 1e30F))
            refuse("image.max_value is ", image.max_value, ", accepted are 1e-6 to 1e30 (0: the default of the dtype)");
        batch.max_value = static_cast<double>(image.max_value);
    }
    batch.count = std::max(image.count, 1);
    batch.height = image.height;
    batch.width = image.width;
    batch.channels = plan.channels;

    const auto item = static_cast<int64_t>(pixel_bytes(batch.first.type));
    const auto or_default = [](int64_t stride, int64_t value) {
        return stride == UF_STRIDE_ZERO ? 0 : stride != 0 ? stride : value;
    };
    ImageView &view = batch.first;
    view.data = static_cast<const std::byte *>(image.data);
    view.channel_stride = or_default(image.channel_stride_bytes, item);
    view.pixel_stride = or_default(image.pixel_stride_bytes, item * batch.channels);
    view.row_stride = or_default(image.row_stride_bytes, multiply(batch.width, view.pixel_stride, "image"));
    batch.image_stride = or_default(image.image_stride_bytes, multiply(batch.height, view.row_stride, "image"));
    check_alignment(image.data, static_cast<size_t>(item), "image");
    const struct {
        const char *name;
        int64_t size, stride;
    } axes[] = {{"image_stride_bytes", batch.count, batch.image_stride},
                {"row_stride_bytes", batch.height, view.row_stride},
                {"pixel_stride_bytes", batch.width, view.pixel_stride},
                {"channel_stride_bytes", batch.channels, view.channel_stride}};
    int64_t end = item; // and four times an eighth of the range at most
    for (const auto &axis : axes) {
        multiply(axis.size, axis.stride, "image");
        end += std::max<int64_t>((axis.size - 1) * axis.stride, 0);
        if (axis.size > 1 && axis.stride % item != 0)
            refuse("image.", axis.name, " is ", axis.stride, ", expected a multiple of the ", item,
                   " bytes of its dtype");
    }
    check_size(image.size_bytes, end, "image");
    return batch;
}

OutputBatch check_output(const uf_output &output, int count, int64_t height, int64_t width, const Plan &plan) {
    if (output.data == nullptr)
        refuse("output.data is NULL");
    OutputBatch batch;
    batch.first.on_device = is_on_device(output.memory, "output");
    batch.first.data = static_cast<std::byte *>(output.data);
    if (output.dtype == UF_UINT8) {
        if (!plan.has_mask())
            throw Error(UF_ERR_UNSUPPORTED,
                        message("this network has ", plan.output_channels,
                                plan.output_kind == OutputKind::identity ? " values per pixel and" : " classes, so",
                                " no mask; ask for UF_FLOAT32 instead"));
        batch.first.type = ResultType::mask;
    } else if (output.dtype == UF_FLOAT32) {
        batch.first.type = ResultType::probability;
        check_alignment(output.data, sizeof(float), "output");
    } else {
        refuse("output.dtype is ", output.dtype,
               ", accepted are UF_UINT8 (1) for a mask and UF_FLOAT32 (3) for "
               "probabilities");
    }

    const int64_t row_bytes = width * static_cast<int64_t>(result_bytes(batch.first.type, plan));
    const int64_t row_stride = output.row_stride_bytes != 0 ? output.row_stride_bytes : row_bytes;
    const int64_t image_stride =
        output.image_stride_bytes != 0 ? output.image_stride_bytes : multiply(height, row_stride, "output");
    const int64_t rows_span = std::abs(multiply(height - 1, row_stride, "output")) + row_bytes;
    const int64_t images_span = std::abs(multiply(count - 1, image_stride, "output")) + row_bytes;
    if (height > 1 && std::abs(row_stride) < row_bytes)
        refuse("output.row_stride_bytes is ", row_stride, ", but a row has ", row_bytes, " bytes");
    // Images one after the other, or their rows interleaved (as side by side in one large picture).
    const auto apart = [&] {
        return std::abs(image_stride) >= rows_span ||
               (std::abs(image_stride) >= row_bytes && (height == 1 || std::abs(row_stride) >= images_span));
    };
    if (count > 1 && !apart())
        refuse("output.image_stride_bytes is ", image_stride, ", but a result has ", rows_span, " bytes");
    if (batch.first.type == ResultType::probability && (row_stride % 4 != 0 || image_stride % 4 != 0))
        refuse("output strides must be multiples of 4 bytes for UF_FLOAT32, are ", row_stride, " and ", image_stride);
    check_size(output.size_bytes,
               std::max<int64_t>((height - 1) * row_stride, 0) + std::max<int64_t>((count - 1) * image_stride, 0) +
                   row_bytes,
               "output");
    batch.first.row_stride = row_stride;
    batch.image_stride = image_stride;
    return batch;
}

void require_finite(const ImageBatch &images) {
    if (images.first.type != PixelType::float32)
        return;
    for (int index = 0; index < images.count; ++index) {
        const ImageView view = images[index];
        for (int64_t y = 0; y < images.height; ++y)
            for (int64_t x = 0; x < images.width; ++x)
                for (int channel = 0; channel < images.channels; ++channel) {
                    const float value = load<float>(view.data + y * view.row_stride + x * view.pixel_stride +
                                                    channel * view.channel_stride);
                    if (!std::isfinite(value))
                        refuse("image ", index, " holds ", value, " at row ", y, ", column ", x, ", channel ", channel,
                               "; replace such pixels first");
                }
    }
}

PixelTransform pixel_transform(const Plan &plan, const ImageBatch &images, int index) {
    PixelTransform transform;
    const double white = images.max_value;
    const auto set = [&](int channel, double scale, double shift) {
        // A float image may be so dark or so uniform that the factor has no float32; finite is what matters then.
        constexpr double largest = std::numeric_limits<float>::max();
        transform.scale[channel] = static_cast<float>(std::clamp(scale, -largest, largest));
        transform.shift[channel] = static_cast<float>(std::clamp(shift, -largest, largest));
    };
    if (plan.normalisation.kind == NormalisationKind::fixed) {
        for (int channel = 0; channel < plan.channels; ++channel) {
            const double mean = static_cast<double>(plan.normalisation.mean[static_cast<size_t>(channel)]);
            const double deviation = static_cast<double>(plan.normalisation.std[static_cast<size_t>(channel)]);
            set(channel, 1.0 / (white * deviation), -mean / deviation);
        }
        return transform;
    }
    const auto [mean, deviation] = with_type(images.first.type, [&](auto *pixel) {
        return moments<std::remove_const_t<std::remove_pointer_t<decltype(pixel)>>>(images, images[index]);
    });
    // A constant image becomes exactly zero, whatever rounding would make of value * scale + shift.
    const double spread = deviation / white + static_cast<double>(plan.normalisation.epsilon);
    for (int channel = 0; channel < plan.channels; ++channel)
        set(channel, deviation == 0.0 ? 0.0 : 1.0 / (white * spread),
            deviation == 0.0 ? 0.0 : -mean / (white * spread));
    return transform;
}

size_t result_bytes(ResultType type, const Plan &plan) {
    return type == ResultType::mask ? 1 : sizeof(float) * static_cast<size_t>(plan.output_channels);
}

int64_t mirrored(int64_t position, int64_t size) {
    if (size == 1)
        return 0;
    const int64_t period = 2 * (size - 1);
    const int64_t within = ((position % period) + period) % period;
    return within < size ? within : period - within;
}

void copy_mirrored(const ImageBatch &images, int index, int64_t top, int64_t left, int64_t rows, int64_t columns,
                   std::byte *target) {
    const ImageView view = images[index];
    with_type(view.type, [&](auto *pixel) {
        using Pixel = std::remove_const_t<std::remove_pointer_t<decltype(pixel)>>;
        const int64_t row_bytes = columns * images.channels * static_cast<int64_t>(sizeof(Pixel));
        for (int64_t y = 0; y < rows; ++y) {
            const std::byte *row = view.data + mirrored(top + y, images.height) * view.row_stride;
            std::byte *to = target + y * row_bytes;
            for (int64_t x = 0; x < columns; ++x) {
                const std::byte *from = row + mirrored(left + x, images.width) * view.pixel_stride;
                for (int channel = 0; channel < images.channels; ++channel, to += sizeof(Pixel))
                    std::memcpy(to, from + channel * view.channel_stride, sizeof(Pixel));
            }
        }
        return 0;
    });
}

ImageView tight_view(const std::byte *data, PixelType type, int64_t width, int channels) {
    const auto item = static_cast<int64_t>(pixel_bytes(type));
    return {data, type, width * channels * item, channels * item, item};
}

void resize_row(const ImageView &source, int64_t height, int64_t width, int channels, int64_t target_row,
                int64_t target_height, int64_t target_width, float *target) {
    with_type(source.type, [&](auto *pixel) {
        using Pixel = std::remove_const_t<std::remove_pointer_t<decltype(pixel)>>;
        const Sample y = sample(target_row, target_height, height);
        const std::byte *upper = source.data + y.low * source.row_stride;
        const std::byte *lower = source.data + y.high * source.row_stride;
        const auto mix = [](float a, float b, float weight) { return a + (b - a) * weight; };
        for (int64_t column = 0; column < target_width; ++column) {
            const Sample x = sample(column, target_width, width);
            for (int channel = 0; channel < channels; ++channel) {
                const int64_t left = x.low * source.pixel_stride + channel * source.channel_stride;
                const int64_t right = x.high * source.pixel_stride + channel * source.channel_stride;
                const auto at = [](const std::byte *data) { return static_cast<float>(load<Pixel>(data)); };
                *target++ = mix(mix(at(upper + left), at(upper + right), x.weight),
                                mix(at(lower + left), at(lower + right), x.weight), y.weight);
            }
        }
        return 0;
    });
}

float logit(float probability) {
    const double value = static_cast<double>(probability);
    return static_cast<float>(std::log(value / (1.0 - value)));
}

void write_row(const float *probability, int64_t width, const Plan &plan, float threshold, const OutputView &output,
               int64_t row) {
    std::byte *target = output.data + row * output.row_stride;
    const auto channels = static_cast<size_t>(plan.output_channels);
    if (output.type == ResultType::probability) {
        std::memcpy(target, probability, static_cast<size_t>(width) * channels * sizeof(float));
        return;
    }
    for (int64_t x = 0; x < width; ++x, probability += channels) {
        const bool one_class = plan.output_kind == OutputKind::sigmoid;
        target[x] =
            static_cast<std::byte>(one_class ? (*probability > threshold ? 255 : 0)
                                             : std::max_element(probability, probability + channels) - probability);
    }
}

} // namespace uf
