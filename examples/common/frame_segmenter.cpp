#include "frame_segmenter.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <type_traits>

namespace example {

namespace {

const std::map<std::string, uf_tiling> tilings = {
    {"fast", UF_TILING_FAST}, {"exact", UF_TILING_EXACT}, {"resize", UF_TILING_RESIZE}, {"none", UF_TILING_NONE}};

// Black for the background, then hues that a screen tells apart.
const std::vector<int64_t> default_palette = {0x000000, 0x00C8FF, 0xFF8000, 0x40E040, 0xFF40C0, 0xFFE000, 0x8060FF};

constexpr int largest_mask_side = 1 << 15;

[[noreturn]] void refuse(const std::string &message) { throw std::invalid_argument(message); }

SegmenterParameters checked(SegmenterParameters given) {
    if (given.engine_file_path.empty())
        refuse("engine_file_path is empty; set it to a .unet file");
    if (tilings.count(given.tiling) == 0)
        refuse("tiling is '" + given.tiling + "', accepted are fast, exact, resize and none");
    const std::string &encoding = given.color_segmentation_mask_encoding;
    if (encoding != "rgb8" && encoding != "bgr8")
        refuse("color_segmentation_mask_encoding is '" + encoding + "', accepted are rgb8 and bgr8");
    const std::string &kind = given.network_output_type;
    if (!kind.empty() && kind != "sigmoid" && kind != "softmax" && kind != "argmax")
        refuse("network_output_type is '" + kind + "', accepted are sigmoid, softmax, argmax and '' (any)");
    if ((given.mask_width == 0) != (given.mask_height == 0) || given.mask_width < 0 || given.mask_height < 0 ||
        given.mask_width > largest_mask_side || given.mask_height > largest_mask_side)
        refuse("mask_width and mask_height are " + std::to_string(given.mask_width) + " and " +
               std::to_string(given.mask_height) + ", accepted are 0 and 0 (the frame's size) or 1 to " +
               std::to_string(largest_mask_side));
    if (!(given.threshold >= 0.0 && given.threshold < 1.0))
        refuse("threshold is " + std::to_string(given.threshold) + ", accepted are 0 (the engine's) and (0, 1)");
    if (given.color_palette.empty())
        given.color_palette = default_palette;
    for (const int64_t colour : given.color_palette)
        if (colour < 0 || colour > 0xFFFFFF)
            refuse("color_palette holds " + std::to_string(colour) + ", accepted are 0xRRGGBB, 0 to 0xFFFFFF");
    return given;
}

unet_fast::Options engine_options(const SegmenterParameters &parameters) {
    unet_fast::Options options;
    options.device = parameters.device;
    options.precision = parameters.precision;
    options.threads = parameters.threads;
    return options;
}

// Brightness by ITU-R 601 in thousandths, rounded to nearest for integers: what `unet-fast segment` does with colours.
template <class Pixel> void to_grey(const uf_image &colours, uint8_t *grey) {
    const auto *pixels = static_cast<const uint8_t *>(colours.data);
    for (int64_t y = 0; y < colours.height; ++y)
        for (int64_t x = 0; x < colours.width; ++x) {
            const uint8_t *pixel = pixels + y * colours.row_stride_bytes + x * colours.pixel_stride_bytes;
            Pixel channels[3]; // red, green, blue
            for (int channel = 0; channel < 3; ++channel)
                std::memcpy(&channels[channel], pixel + channel * colours.channel_stride_bytes, sizeof(Pixel));
            Pixel light;
            if constexpr (std::is_floating_point_v<Pixel>)
                light = 0.299F * channels[0] + 0.587F * channels[1] + 0.114F * channels[2];
            else
                light =
                    static_cast<Pixel>((299U * channels[0] + 587U * channels[1] + 114U * channels[2] + 500U) / 1000U);
            std::memcpy(grey, &light, sizeof light);
            grey += sizeof light;
        }
}

// The frame as the network takes it: where it lies, or in `converted` where colours must become grey.
uf_image network_image(const Frame &frame, int channels, std::vector<uint8_t> &converted) {
    uf_image image = unet_fast::describe(frame.data.data(), frame.encoding, frame.height, frame.width, frame.row_step);
    const int64_t item_bytes = image.dtype == UF_UINT8 ? 1 : image.dtype == UF_UINT16 ? 2 : 4;
    const uint16_t one = 1;
    const bool big_endian_machine = *reinterpret_cast<const uint8_t *>(&one) == 0;
    if (item_bytes > 1 && frame.big_endian != big_endian_machine)
        refuse("the image's values of " + std::to_string(item_bytes) + " bytes are not in this machine's order");
    // Behind image.data, which is not the first byte where blue comes first.
    const auto have =
        static_cast<int64_t>(frame.data.size()) - (static_cast<const uint8_t *>(image.data) - frame.data.data());
    const int64_t needed = (frame.height - 1) * image.row_stride_bytes + (frame.width - 1) * image.pixel_stride_bytes +
                           std::max<int64_t>((image.channels - 1) * image.channel_stride_bytes, 0) + item_bytes;
    if (have < needed)
        refuse("the image has " + std::to_string(frame.data.size()) + " bytes, too few for " +
               std::to_string(frame.height) + " x " + std::to_string(frame.width) + " of " + frame.encoding + " at " +
               std::to_string(image.row_stride_bytes) + " a row");
    if (channels == 1 && image.channels == 3) {
        converted.resize(static_cast<size_t>(int64_t{frame.height} * frame.width * item_bytes));
        if (image.dtype == UF_UINT8)
            to_grey<uint8_t>(image, converted.data());
        else if (image.dtype == UF_UINT16)
            to_grey<uint16_t>(image, converted.data());
        else
            to_grey<float>(image, converted.data());
        image.data = converted.data();
        image.channels = 1;
        image.row_stride_bytes = image.pixel_stride_bytes = image.channel_stride_bytes = 0;
    } else if (channels == 3 && image.channels == 1) {
        image.channels = 3;
        image.channel_stride_bytes = UF_STRIDE_ZERO;
    }
    return image;
}

std::string in_milliseconds(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3f ms", value);
    return text;
}

} // namespace

FrameSegmenter::FrameSegmenter(SegmenterParameters parameters)
    : parameters_(checked(std::move(parameters))), engine_(parameters_.engine_file_path, engine_options(parameters_)) {
    const uf_info engine = engine_.info();
    options_.tiling = tilings.at(parameters_.tiling);
    options_.threshold = static_cast<float>(parameters_.threshold);
    // A first pass takes memory before the first frame comes, and fails where the network has no mask.
    const auto side = static_cast<size_t>(engine.tile);
    const std::vector<uint8_t> black(side * side * static_cast<size_t>(engine.channels));
    engine_.segment(unet_fast::view(black, engine.tile, engine.tile, engine.channels), options_);
    const std::string &wanted = parameters_.network_output_type;
    const bool sigmoid = engine.output_kind == 0;
    if (!wanted.empty() && (wanted == "sigmoid") != sigmoid)
        refuse("network_output_type is '" + wanted + "', but " + parameters_.engine_file_path + " is a network with " +
               (sigmoid ? "one class (sigmoid)" : "several classes (softmax)"));
}

void FrameSegmenter::segment(const Frame &frame, LabelMask &mask) {
    const uf_info engine = engine_.info();
    const uf_image image = network_image(frame, engine.channels, converted_);
    const uf_run_options options = unet_fast::detail::run_options(options_);
    int32_t height = 0, width = 0;
    unet_fast::check(uf_output_size(engine_.handle(), image.height, image.width, &options, &height, &width));
    const bool resized =
        parameters_.mask_width != 0 && (parameters_.mask_width != width || parameters_.mask_height != height);
    std::vector<uint8_t> &labels = resized ? full_size_ : mask.labels;
    labels.resize(static_cast<size_t>(height) * static_cast<size_t>(width));
    uf_output output = unet_fast::output(labels.data());
    engine_.run(image, output, options_);
    if (engine.output_kind == 0)
        for (uint8_t &label : labels)
            label &= 1; // from 0 and 255

    mask.height = resized ? parameters_.mask_height : height;
    mask.width = resized ? parameters_.mask_width : width;
    if (!resized)
        return;
    mask.labels.resize(static_cast<size_t>(mask.height) * static_cast<size_t>(mask.width));
    uint8_t *next = mask.labels.data();
    for (int64_t y = 0; y < mask.height; ++y) {
        const uint8_t *row = full_size_.data() + (2 * y + 1) * height / (2 * mask.height) * width;
        for (int64_t x = 0; x < mask.width; ++x)
            *next++ = row[(2 * x + 1) * width / (2 * mask.width)];
    }
}

void FrameSegmenter::paint(const LabelMask &mask, std::vector<uint8_t> &pixels) const {
    const std::vector<int64_t> &palette = parameters_.color_palette;
    const size_t red = parameters_.color_segmentation_mask_encoding == "rgb8" ? 0 : 2;
    pixels.resize(mask.labels.size() * 3);
    uint8_t *next = pixels.data();
    for (const uint8_t label : mask.labels) {
        const int64_t colour = palette[label % palette.size()];
        next[red] = static_cast<uint8_t>(colour >> 16);
        next[1] = static_cast<uint8_t>(colour >> 8);
        next[2 - red] = static_cast<uint8_t>(colour);
        next += 3;
    }
}

void SegmentationService::load(const SegmenterParameters &parameters) {
    try {
        auto segmenter = std::make_shared<FrameSegmenter>(parameters);
        const std::lock_guard<std::mutex> lock(mutex_);
        segmenter_ = std::move(segmenter);
        latencies_ = LatencyLog(kept_latencies);
        failures_ = 0;
        last_failed_ = false;
        last_error_.clear();
    } catch (const std::exception &error) {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_error_ = error.what();
        throw;
    }
}

bool SegmentationService::process(const Frame &frame, LabelMask &mask, std::vector<uint8_t> *colours) {
    std::shared_ptr<FrameSegmenter> segmenter;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        segmenter = segmenter_;
    }
    if (segmenter == nullptr)
        return false;
    try {
        const Clock::time_point start = Clock::now();
        segmenter->segment(frame, mask);
        if (colours != nullptr)
            segmenter->paint(mask, *colours);
        const Clock::duration taken = Clock::now() - start;
        const std::lock_guard<std::mutex> lock(mutex_);
        latencies_.add(taken);
        last_failed_ = false;
        return true;
    } catch (const std::exception &error) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++failures_;
        last_failed_ = true;
        last_error_ = error.what();
        return false;
    }
}

SegmentationService::Health SegmentationService::health() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    Health health;
    if (segmenter_ == nullptr) {
        health.level = Level::error;
        health.summary = "no engine: " + (last_error_.empty() ? "engine_file_path is not set" : last_error_);
        return health;
    }
    const uf_info engine = segmenter_->info();
    const std::vector<double> latency = latencies_.percentiles({0.5, 0.99, 1.0});
    if (last_failed_) {
        health.level = Level::error;
        health.summary = "the last frame failed: " + last_error_;
    } else if (latencies_.added() == 0) {
        health.level = Level::warning;
        health.summary = "no frame yet";
    } else {
        health.summary = "segmenting, p99 " + in_milliseconds(latency[1]);
    }
    health.details = {
        {"engine_file_path", segmenter_->parameters().engine_file_path},
        {"network", engine.name},
        {"device", engine.device},
        {"device reason", engine.device_reason},
        {"precision", engine.precision},
        {"frames", std::to_string(latencies_.added())},
        {"failed frames", std::to_string(failures_)},
        {"latency p50", in_milliseconds(latency[0])},
        {"latency p99", in_milliseconds(latency[1])},
        {"latency max", in_milliseconds(latency[2])},
    };
    if (!last_error_.empty())
        health.details.emplace_back("last error", last_error_);
    return health;
}

SegmenterParameters SegmentationService::parameters() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return segmenter_ == nullptr ? SegmenterParameters() : segmenter_->parameters();
}

} // namespace example
