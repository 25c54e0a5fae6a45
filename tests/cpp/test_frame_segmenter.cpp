// FrameSegmenter and SegmentationService of the examples: test_frame_segmenter FOLDER, which holds engines of
// tests/networks.py; also under AddressSanitizer and UBSan.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "../../examples/common/frame_segmenter.hpp"
#include "../c/check.h"
#include "refused.h"

using example::Frame;
using example::FrameSegmenter;
using example::LabelMask;
using example::SegmentationService;
using example::SegmenterParameters;

static std::string folder;
constexpr int height = 37, width = 45;

static SegmenterParameters parameters_of(const std::string &network) {
    SegmenterParameters parameters;
    parameters.engine_file_path = folder + "/" + network + ".unet";
    parameters.device = "cpu";
    return parameters;
}

// How an encoding of ROS lies in memory: the channel of red, green, blue in turn, or of grey alone.
struct Encoding {
    const char *name;
    int item_bytes, stored;
    std::vector<int> places;
};

static const Encoding encodings[] = {
    {"mono8", 1, 1, {0}},       {"8UC1", 1, 1, {0}},         {"mono16", 2, 1, {0}},       {"16UC1", 2, 1, {0}},
    {"32FC1", 4, 1, {0}},       {"rgb8", 1, 3, {0, 1, 2}},   {"bgr8", 1, 3, {2, 1, 0}},   {"8UC3", 1, 3, {0, 1, 2}},
    {"rgba8", 1, 4, {0, 1, 2}}, {"bgra8", 1, 4, {2, 1, 0}},  {"rgb16", 2, 3, {0, 1, 2}},  {"bgr16", 2, 3, {2, 1, 0}},
    {"16UC3", 2, 3, {0, 1, 2}}, {"bgra16", 2, 4, {2, 1, 0}}, {"rgba16", 2, 4, {0, 1, 2}}, {"32FC3", 4, 3, {0, 1, 2}},
};

template <class Pixel>
static std::vector<uint8_t> expected_labels(const unet_fast::Engine &engine, const Encoding &encoding,
                                            const std::vector<uint8_t> &data, uint32_t row_step) {
    const uf_info info = engine.info();
    std::vector<Pixel> tight;
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            std::vector<double> values;
            for (const int place : encoding.places) {
                Pixel value;
                const size_t at =
                    static_cast<size_t>(y) * row_step + static_cast<size_t>(x * encoding.stored + place) * sizeof value;
                std::memcpy(&value, &data[at], sizeof value);
                values.push_back(static_cast<double>(value));
            }
            if (info.channels == 1 && values.size() == 3)
                values = {(299 * values[0] + 587 * values[1] + 114 * values[2]) / 1000};
            if (info.channels == 3 && values.size() == 1)
                values = {values[0], values[0], values[0]};
            for (const double value : values)
                tight.push_back(static_cast<Pixel>(std::is_same_v<Pixel, float> ? value : std::floor(value + 0.5)));
        }
    std::vector<uint8_t> labels = engine.segment(unet_fast::view(tight, height, width, info.channels));
    for (uint8_t &label : labels)
        label = info.output_kind == 0 ? label == 255 : label;
    return labels;
}

// Every encoding, with padded rows, into a grey and a colour network.
static void test_encodings(const std::string &network) {
    const unet_fast::Engine engine(parameters_of(network).engine_file_path, {"cpu"});
    FrameSegmenter segmenter(parameters_of(network));
    for (const Encoding &encoding : encodings) {
        const auto row_step = static_cast<uint32_t>((width * encoding.stored + 8) * encoding.item_bytes);
        std::vector<uint8_t> data(height * row_step);
        fill_with_noise(data.data(), data.size(), 17);
        if (encoding.item_bytes == 4)
            for (size_t at = 0; at < data.size(); at += 4) {
                const float value = static_cast<float>(data[at]) / 255.0F;
                std::memcpy(&data[at], &value, sizeof value);
            }
        LabelMask mask;
        segmenter.segment({height, width, encoding.name, false, row_step, data}, mask);
        const std::vector<uint8_t> expected =
            encoding.item_bytes == 1   ? expected_labels<uint8_t>(engine, encoding, data, row_step)
            : encoding.item_bytes == 2 ? expected_labels<uint16_t>(engine, encoding, data, row_step)
                                       : expected_labels<float>(engine, encoding, data, row_step);
        // A float's grey is rounded otherwise, and a pixel whose probability is just 0.5 may fall on either side.
        size_t differ = 0;
        for (size_t i = 0; i < expected.size(); ++i)
            differ += mask.labels.at(i) != expected[i];
        const bool rounded = encoding.item_bytes == 4 && encoding.stored == 3 && engine.info().channels == 1;
        if (mask.height != height || mask.width != width || mask.labels.size() != expected.size() ||
            differ > (rounded ? 2U : 0U)) {
            std::fprintf(stderr, "%s on %s: %zu labels differ\n", encoding.name, network.c_str(), differ);
            ++failures;
        }
    }
}

// Which of the two exceptions a frame ends in.
template <class Exception> static bool throws(FrameSegmenter &segmenter, const Frame &frame) {
    LabelMask mask;
    try {
        segmenter.segment(frame, mask);
    } catch (const Exception &) {
        return true;
    } catch (const std::exception &) {
    }
    return false;
}

static void test_bad_frames() {
    FrameSegmenter segmenter(parameters_of("rgb"));
    const std::vector<uint8_t> data(width * height * 3 + 1), empty;
    LabelMask mask;
    const auto segment = [&](const Frame &frame) {
        return [&segmenter, &mask, frame] { segmenter.segment(frame, mask); };
    };
    CHECK(refused("bayer_rggb8", segment({height, width, "bayer_rggb8", false, width, data})));
    CHECK(refused("order", segment({height, width / 2, "mono16", true, width, data})));
    CHECK(refused("too few", segment({height + 1, width, "rgb8", false, width * 3, data})));
    CHECK(refused("too few", segment({height, width, "bgr8", false, width * 3 + 1, data})));
    CHECK(refused("135", segment({height, width, "rgb8", false, width, data})));
    CHECK(refused("height", segment({0, width, "rgb8", false, width * 3, data})));
    CHECK(refused("width", segment({height, -1, "rgb8", false, width * 3, data})));
    CHECK(refused("NULL", segment({height, width, "rgb8", false, width * 3, empty})));
    CHECK(throws<std::invalid_argument>(segmenter, {height, width / 2, "mono16", true, width, data}));
    CHECK(throws<std::invalid_argument>(segmenter, {height + 1, width, "rgb8", false, width * 3, data}));
    CHECK(throws<unet_fast::Error>(segmenter, {height, width, "bayer_rggb8", false, width, data}));
    CHECK(throws<unet_fast::Error>(segmenter, {0, width, "rgb8", false, width * 3, data}));
    segmenter.segment({height, width, "rgb8", false, width * 3, data}, mask); // and is still good
    CHECK(mask.labels.size() == static_cast<size_t>(height * width));
    FrameSegmenter two_channels(parameters_of("two_channels"));
    CHECK(refused("channels", [&] { two_channels.segment({height, width, "rgb8", false, width * 3, data}, mask); }));
}

static void test_bad_parameters() {
    const auto with = [](const std::function<void(SegmenterParameters &)> &change, const char *network = "plain") {
        SegmenterParameters parameters = parameters_of(network);
        change(parameters);
        return [parameters] { const FrameSegmenter segmenter(parameters); };
    };
    CHECK(refused("engine_file_path", with([](auto &p) { p.engine_file_path = ""; })));
    CHECK(refused("No such file", with([](auto &p) { p.engine_file_path += "x"; })));
    CHECK(refused("several classes", with([](auto &p) { p.network_output_type = "sigmoid"; }, "classes")));
    CHECK(refused("one class", with([](auto &p) { p.network_output_type = "argmax"; })));
    CHECK(refused("'logits'", with([](auto &p) { p.network_output_type = "logits"; })));
    CHECK(refused("'mono8'", with([](auto &p) { p.color_segmentation_mask_encoding = "mono8"; })));
    CHECK(refused("color_palette", with([](auto &p) { p.color_palette = {0, 0x1000000}; })));
    CHECK(refused("mask_width", with([](auto &p) { p.mask_width = 5; })));
    CHECK(refused("mask_width", with([](auto &p) { p.mask_width = p.mask_height = -1; })));
    CHECK(refused("tiling", with([](auto &p) { p.tiling = "best"; })));
    CHECK(refused("threshold", with([](auto &p) { p.threshold = 1.0; })));
    CHECK(refused("threshold", with([](auto &p) { p.threshold = NAN; })));
    CHECK(refused("no mask", with([](auto &) {}, "regression")));
}

static void test_masks() {
    std::vector<uint8_t> data(height * width);
    fill_with_noise(data.data(), data.size(), 3);
    const Frame frame{height, width, "mono8", false, width, data};
    LabelMask mask, resized;
    SegmenterParameters parameters = parameters_of("classes");
    parameters.network_output_type = "argmax";
    FrameSegmenter(parameters).segment(frame, mask);

    parameters.mask_height = 50;
    parameters.mask_width = 20;
    parameters.color_palette = {0x010203, 0xA0B0C0}; // for five classes
    parameters.color_segmentation_mask_encoding = "bgr8";
    FrameSegmenter segmenter(parameters);
    segmenter.segment(frame, resized);
    CHECK(resized.height == 50 && resized.width == 20 && resized.labels.size() == 1000);
    std::vector<uint8_t> pixels;
    segmenter.paint(resized, pixels);
    CHECK(pixels.size() == 3000);
    for (size_t y = 0; y < 50; ++y)
        for (size_t x = 0; x < 20; ++x) {
            const auto from_y = static_cast<size_t>((static_cast<double>(y) + 0.5) * height / 50);
            const auto from_x = static_cast<size_t>((static_cast<double>(x) + 0.5) * width / 20);
            const uint8_t label = mask.labels[from_y * width + from_x];
            CHECK(resized.labels[y * 20 + x] == label);
            const uint8_t *pixel = &pixels[(y * 20 + x) * 3];
            const bool even = label % 2 == 0;
            CHECK(pixel[0] == (even ? 3 : 0xC0) && pixel[1] == (even ? 2 : 0xB0) && pixel[2] == (even ? 1 : 0xA0));
        }
}

// Engines are exchanged while frames come; one that cannot be opened changes nothing.
static void test_service() {
    std::vector<uint8_t> data(height * width);
    const Frame frame{height, width, "mono8", false, width, data};
    LabelMask mask;
    SegmentationService service;
    using Level = SegmentationService::Level;
    CHECK(!service.process(frame, mask, nullptr) && service.health().level == Level::error);
    CHECK(refused("No such file", [&] { service.load(parameters_of("none")); }));
    CHECK(service.health().summary.find("No such file") != std::string::npos);
    service.load(parameters_of("plain"));
    CHECK(service.health().level == Level::warning); // no frame yet
    CHECK(service.process(frame, mask, nullptr) && service.health().level == Level::ok);
    CHECK(refused("No such file", [&] { service.load(parameters_of("none")); }));
    CHECK(service.parameters().engine_file_path == parameters_of("plain").engine_file_path);
    CHECK(service.health().level == Level::ok);
    CHECK(!service.process({height, width, "jpeg", false, width, data}, mask, nullptr));
    CHECK(service.health().level == Level::error && service.health().summary.find("jpeg") != std::string::npos);
    service.load(parameters_of("plain"));
    for (const auto &[name, value] : service.health().details)
        CHECK(name != "last error" && (name != "failed frames" || value == "0"));

    std::atomic<bool> stop{false};
    std::thread loader([&] {
        while (!stop)
            for (const char *network : {"rgb", "classes", "plain"}) {
                service.load(parameters_of(network));
                CHECK(!service.health().details.empty());
            }
    });
    std::vector<uint8_t> colours;
    for (int i = 0; i < 200; ++i)
        CHECK(service.process(frame, mask, &colours) && colours.size() == data.size() * 3);
    stop = true;
    loader.join();
}

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    folder = arguments[1];
    test_encodings("plain");
    test_encodings("rgb");
    test_bad_frames();
    test_bad_parameters();
    test_masks();
    test_service();
    return failures != 0;
}
