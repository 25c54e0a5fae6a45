// segment_video ENGINE.unet SOURCE [options]: segments a camera, a video file or numbered pictures as they come, shows
// the masks over the frames, and prints how long the segmentation took.
//
// What it shows: cv::Mat in and out without a copy (unet_fast_opencv.hpp), memory that is kept from frame to frame,
// and what to measure: the time from a frame in memory to its mask, by percentiles, apart from capture and display.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include <getopt.h>
#include <opencv2/highgui.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/videoio.hpp>
#include <unet_fast_opencv.hpp>

#include "../common/latency_log.hpp"

namespace {

constexpr const char *usage =
    "usage: segment_video ENGINE.unet SOURCE [options]\n"
    "  SOURCE            number of a camera (0), a video file, or numbered pictures (frame_%03d.png)\n"
    "  --output FILE     write the overlay as a video (.avi, .mp4) instead of showing a window\n"
    "  --masks FOLDER    write each mask as FOLDER/mask_NNNNNN.png; without --output there is no window either\n"
    "  --frames N        stop after N frames\n"
    "  --device NAME     auto (default), cpu, cuda, cuda:1\n"
    "  --threads N       CPU threads; default: one per physical core\n";

struct Arguments {
    std::string engine, source, output, masks, device = "auto";
    long frames = -1; // until the source ends
    int threads = 0;
    bool window() const { return output.empty() && masks.empty(); }
};

long to_count(const char *option, const char *text) {
    char *end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > 1'000'000'000)
        throw std::invalid_argument(std::string(option) + " is '" + text + "', expected a number from 1 to 10^9");
    return value;
}

Arguments parsed(int count, char **values) {
    static const option options[] = {
        {"output", required_argument, nullptr, 'o'},  {"masks", required_argument, nullptr, 'm'},
        {"frames", required_argument, nullptr, 'f'},  {"device", required_argument, nullptr, 'd'},
        {"threads", required_argument, nullptr, 't'}, {}};
    Arguments arguments;
    int given = 0;
    while ((given = getopt_long(count, values, "", options, nullptr)) != -1) {
        switch (given) {
        case 'o':
            arguments.output = optarg;
            break;
        case 'm':
            arguments.masks = optarg;
            break;
        case 'f':
            arguments.frames = to_count("--frames", optarg);
            break;
        case 'd':
            arguments.device = optarg;
            break;
        case 't':
            arguments.threads = static_cast<int>(to_count("--threads", optarg));
            break;
        default:
            throw std::invalid_argument(usage);
        }
    }
    if (count - optind != 2)
        throw std::invalid_argument(usage);
    arguments.engine = values[optind];
    arguments.source = values[optind + 1];
    // The window systems below OpenCV end the process where there is no display.
    if (arguments.window() && !std::getenv("DISPLAY") && !std::getenv("WAYLAND_DISPLAY") &&
        !std::getenv("QT_QPA_PLATFORM"))
        throw std::invalid_argument("no display for a window; give --output FILE or --masks FOLDER");
    return arguments;
}

cv::VideoCapture opened(const std::string &source) {
    const bool camera = source.find_first_not_of("0123456789") == std::string::npos;
    cv::VideoCapture capture;
    if (camera)
        capture.open(std::atoi(source.c_str()));
    else
        capture.open(source);
    if (!capture.isOpened())
        throw std::runtime_error("cannot open " + std::string(camera ? "camera " : "") + source);
    return capture;
}

// The frame with each label but the background in a colour of its own.
class Overlay {
  public:
    explicit Overlay(bool one_class) : colours_(1, 256, CV_8UC3, cv::Scalar()) {
        if (one_class) {
            colours_.at<cv::Vec3b>(255) = {0, 160, 255};
            return;
        }
        for (int label = 1; label < 256; ++label) // hues far apart for labels that follow each other
            colours_.at<cv::Vec3b>(label) = {static_cast<uint8_t>(label * 97 % 180), 255, 255};
        cv::Mat labels = colours_.colRange(1, 256);
        cv::cvtColor(labels, labels, cv::COLOR_HSV2BGR);
    }

    const cv::Mat &draw(const cv::Mat &frame, const cv::Mat &mask) {
        frame.convertTo(picture_, CV_8U, frame.depth() == CV_16U ? 1.0 / 257.0 : 1.0);
        if (frame.channels() == 1)
            cv::cvtColor(picture_, picture_, cv::COLOR_GRAY2BGR);
        cv::cvtColor(mask, wide_mask_, cv::COLOR_GRAY2BGR);
        cv::LUT(wide_mask_, colours_, tint_);
        cv::addWeighted(picture_, 1.0, tint_, 0.5, 0.0, picture_);
        return picture_;
    }

  private:
    cv::Mat colours_, picture_, wide_mask_, tint_; // all BGR
};

class VideoFile {
  public:
    VideoFile(std::string path, double frames_per_second)
        : path_(std::move(path)), frames_per_second_(frames_per_second > 0 ? frames_per_second : 30.0) {}

    void write(const cv::Mat &picture) {
        if (!writer_.isOpened()) {
            const bool mp4 = std::filesystem::path(path_).extension() == ".mp4";
            const int codec =
                mp4 ? cv::VideoWriter::fourcc('m', 'p', '4', 'v') : cv::VideoWriter::fourcc('M', 'J', 'P', 'G');
            if (!writer_.open(path_, codec, frames_per_second_, picture.size()))
                throw std::runtime_error("cannot write " + path_);
        }
        writer_.write(picture);
    }

  private:
    std::string path_;
    double frames_per_second_;
    cv::VideoWriter writer_;
};

// False once the user closes the window with q or Escape.
bool shown(cv::Mat picture, double milliseconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f ms", milliseconds);
    cv::putText(picture, text, {8, 20}, cv::FONT_HERSHEY_SIMPLEX, 0.5, {255, 255, 255}, 1, cv::LINE_AA);
    cv::imshow("unet_fast", picture);
    const int key = cv::pollKey() & 0xFF;
    return key != 'q' && key != 27;
}

void write_mask(const std::string &folder, size_t number, const cv::Mat &mask) {
    char name[32];
    std::snprintf(name, sizeof name, "mask_%06zu.png", number);
    const std::string path = (std::filesystem::path(folder) / name).string();
    if (!cv::imwrite(path, mask))
        throw std::runtime_error("cannot write " + path);
}

void run(const Arguments &arguments) {
    unet_fast::Options options;
    options.device = arguments.device;
    options.threads = arguments.threads;
    const unet_fast::Engine engine(arguments.engine, options);
    const uf_info info = engine.info();
    std::printf("%s on %s (%s)\n", info.name, info.device, info.precision);

    cv::VideoCapture capture = opened(arguments.source);
    VideoFile video(arguments.output, capture.get(cv::CAP_PROP_FPS));
    if (!arguments.masks.empty())
        std::filesystem::create_directories(arguments.masks);
    Overlay overlay(info.output_channels == 1);
    example::LatencyLog latencies(100'000);
    cv::Mat frame, mask;
    size_t frames = 0;
    const auto start = example::Clock::now();
    while (arguments.frames < 0 || frames < static_cast<size_t>(arguments.frames)) {
        if (!capture.read(frame))
            break;
        if (frames == 0)
            unet_fast::segment(engine, frame, mask); // takes the memory and starts the threads
        const auto captured = example::Clock::now();
        unet_fast::segment(engine, frame, mask);
        const auto taken = example::Clock::now() - captured;
        latencies.add(taken);
        if (!arguments.masks.empty())
            write_mask(arguments.masks, frames, mask);
        ++frames;
        if (!arguments.output.empty())
            video.write(overlay.draw(frame, mask));
        if (arguments.window() &&
            !shown(overlay.draw(frame, mask), std::chrono::duration<double, std::milli>(taken).count()))
            break;
    }
    const double seconds = std::chrono::duration<double>(example::Clock::now() - start).count();
    if (frames == 0)
        throw std::runtime_error("no frame in " + arguments.source);
    std::printf("%zu frames of %d x %d, %.1f per second with capture and output\n", frames, mask.rows, mask.cols,
                static_cast<double>(frames) / seconds);
    std::printf("frame to mask, ms: %s\n", latencies.summary().c_str());
}

} // namespace

int main(int count, char **values) {
    try {
        run(parsed(count, values));
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
