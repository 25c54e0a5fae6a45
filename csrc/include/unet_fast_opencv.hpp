// unet_fast with OpenCV 4: cv::Mat in and out.
//
//     unet_fast::Engine engine("cells.unet");
//     cv::Mat frame = cv::imread("cells.png"), mask;
//     unet_fast::segment(engine, frame, mask); // CV_8UC1 of the frame's size
//
// Pixels are read where they lie and results written where they belong, at the matrix's own step, so that a matrix may
// be a rectangle of a larger one (cv::Mat::operator()).  OpenCV's order of colours, BGR, and grey pixels for a colour
// network are told by strides.  Only colours that must become grey make new pixels.
//
// All functions throw std::invalid_argument for a matrix that is not accepted, and unet_fast::Error as in
// unet_fast.hpp. Link with -lunet_fast and OpenCV's core and imgproc.
#ifndef UNET_FAST_OPENCV_HPP
#define UNET_FAST_OPENCV_HPP

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "unet_fast.hpp"

namespace unet_fast {

// How the channels of a cv::Mat with 3 or 4 of them are ordered.  `bgr` is how OpenCV reads files and cameras.
enum class ColourOrder { bgr, rgb };

// A matrix as an image for a network of `channels` channels.  Nothing is copied: the matrix's pixels must outlive the
// view.  Accepted are CV_8U, CV_16U and CV_32F (0 is black, 1 white), with as many channels as the network has; for a
// network of 3 channels, which takes red, green and blue, also 1 channel, and 4, whose alpha is left out.  Set
// `max_value` on the result for a camera of 10 to 14 bits.
inline uf_image view(const cv::Mat &image, int channels, ColourOrder order = ColourOrder::bgr) {
    if (image.dims != 2 || image.empty())
        throw std::invalid_argument("unet_fast::view: the matrix is empty or has more than two dimensions");
    const int depth = image.depth(), given = image.channels();
    if (depth != CV_8U && depth != CV_16U && depth != CV_32F)
        throw std::invalid_argument("unet_fast::view: the matrix is of type " + cv::typeToString(image.type()) +
                                    ", accepted are CV_8U, CV_16U and CV_32F; cv::Mat::convertTo converts");
    if (given != channels && !(channels == 3 && (given == 1 || given == 4)))
        throw std::invalid_argument("unet_fast::view: the matrix has " + std::to_string(given) +
                                    " channels, the network takes " + std::to_string(channels) +
                                    "; cv::cvtColor converts");
    const auto element = static_cast<int64_t>(image.elemSize1());
    const bool backwards = channels == 3 && given != 1 && order == ColourOrder::bgr;
    uf_image result = {};
    result.struct_size = sizeof result;
    result.data = image.data + (backwards ? 2 * element : 0);
    result.dtype = depth == CV_8U ? UF_UINT8 : depth == CV_16U ? UF_UINT16 : UF_FLOAT32;
    result.height = image.rows;
    result.width = image.cols;
    result.channels = channels;
    result.row_stride_bytes = static_cast<int64_t>(image.step[0]);
    result.pixel_stride_bytes = static_cast<int64_t>(image.elemSize());
    result.channel_stride_bytes = backwards ? -element : given == 1 && channels == 3 ? UF_STRIDE_ZERO : element;
    return result;
}

// A matrix that a result is written to: CV_8UC1 for a mask, CV_32F with as many channels as the network's probability
// has.  A result that is larger than the matrix is refused by the call that gets this.
inline uf_output output(cv::Mat &result) {
    if (result.dims != 2 || result.empty() || (result.type() != CV_8UC1 && result.depth() != CV_32F))
        throw std::invalid_argument("unet_fast::output: the matrix is empty or of type " +
                                    cv::typeToString(result.type()) +
                                    ", accepted are CV_8UC1 (mask) and CV_32F (probability)");
    uf_output to = {};
    to.struct_size = sizeof to;
    to.data = result.data;
    to.dtype = result.depth() == CV_8U ? UF_UINT8 : UF_FLOAT32;
    to.row_stride_bytes = static_cast<int64_t>(result.step[0]);
    to.size_bytes =
        (static_cast<size_t>(result.rows) - 1) * result.step[0] + static_cast<size_t>(result.cols) * result.elemSize();
    return to;
}

namespace detail {

// The image itself, or new grey pixels where the network takes those and the image has colours.
inline cv::Mat with_channels(const cv::Mat &image, int channels, ColourOrder order) {
    if (channels != 1 || image.channels() < 3)
        return image;
    const bool alpha = image.channels() == 4;
    cv::Mat grey;
    if (order == ColourOrder::bgr)
        cv::cvtColor(image, grey, alpha ? cv::COLOR_BGRA2GRAY : cv::COLOR_BGR2GRAY);
    else
        cv::cvtColor(image, grey, alpha ? cv::COLOR_RGBA2GRAY : cv::COLOR_RGB2GRAY);
    return grey;
}

inline void run(const Engine &engine, const cv::Mat &image, cv::OutputArray result, int type, int channels,
                const RunOptions &options, ColourOrder order) {
    const cv::Mat pixels = with_channels(image, channels, order); // keeps the memory if `result` is `image`
    const uf_image from = view(pixels, channels, order);
    const uf_run_options given = run_options(options);
    int32_t height = 0, width = 0;
    check(uf_output_size(engine.handle(), from.height, from.width, &given, &height, &width));
    result.create(height, width, type);
    cv::Mat values = result.getMat();
    const bool in_place = values.data == pixels.data; // where one tile would read what another wrote
    if (in_place)
        values = cv::Mat(height, width, type);
    uf_output to = output(values);
    engine.run(from, to, options);
    if (in_place)
        values.copyTo(result);
}

} // namespace detail

// The mask of an image, CV_8UC1: 0 or 255 for one class, else class indices.  `mask` keeps its memory if it has the
// right size and type already, so a loop over frames allocates it once; it may be `image` itself, but must not overlap
// it otherwise.
inline void segment(const Engine &engine, const cv::Mat &image, cv::OutputArray mask, const RunOptions &options = {},
                    ColourOrder order = ColourOrder::bgr) {
    detail::run(engine, image, mask, CV_8UC1, engine.info().channels, options, order);
}

// Likewise the probability, CV_32F with a channel for each of the network's.
inline void probability(const Engine &engine, const cv::Mat &image, cv::OutputArray result,
                        const RunOptions &options = {}, ColourOrder order = ColourOrder::bgr) {
    const uf_info info = engine.info();
    detail::run(engine, image, result, CV_32FC(info.output_channels), info.channels, options, order);
}

} // namespace unet_fast

#endif // UNET_FAST_OPENCV_HPP
