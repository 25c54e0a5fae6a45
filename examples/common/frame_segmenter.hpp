// The segmentation of a robot's camera frames, without a word of ROS: the ROS 1 nodelet and the ROS 2 component only
// carry messages to it and results away.
#ifndef FRAME_SEGMENTER_HPP
#define FRAME_SEGMENTER_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <unet_fast.hpp>

#include "latency_log.hpp"

namespace example {

// The first six are named as NVIDIA's Isaac ROS U-Net names them.
struct SegmenterParameters {
    std::string engine_file_path;    // a .unet file
    std::string network_output_type; // "sigmoid", "softmax" or "argmax" (a softmax of which the label is wanted): the
                                     // engine must be of that kind; "": any
    std::string color_segmentation_mask_encoding = "rgb8"; // or "bgr8"
    std::vector<int64_t> color_palette;  // 0xRRGGBB of label 0, 1, ..., from the start again where labels outnumber it
    int mask_width = 0, mask_height = 0; // size of both masks, by nearest neighbour; 0: that of the frame
    std::string device = "auto", precision = "auto"; // see uf_options
    int threads = 0;
    std::string tiling = "fast"; // "fast", "exact", "resize" or "none", see uf_tiling
    double threshold = 0.0;      // of one class, in (0, 1); 0: the engine's
};

// A camera frame, described as in sensor_msgs/Image.
struct Frame {
    int height = 0, width = 0;
    std::string encoding; // of those of uf_image_describe()
    bool big_endian = false;
    uint32_t row_step = 0; // bytes from a row to the next
    const std::vector<uint8_t> &data;
};

// Labels of a frame, rows tight: 0 and 1 for a network of one class, else the index of the likeliest class.
struct LabelMask {
    int height = 0, width = 0;
    std::vector<uint8_t> labels;
};

// One engine with its parameters.  Not for two threads at a time.
class FrameSegmenter {
  public:
    // Throws std::invalid_argument for a parameter that is not accepted, unet_fast::Error where the engine cannot be
    // opened or has no mask.
    explicit FrameSegmenter(SegmenterParameters parameters);

    // `mask` may keep memory from frame to frame.  Throws std::invalid_argument for values in the wrong order and for
    // too few bytes, unet_fast::Error for encodings, sizes and rows that the engine does not take, and where it fails.
    void segment(const Frame &frame, LabelMask &mask);

    // The palette's colours, 3 bytes per pixel in the order of color_segmentation_mask_encoding, rows tight.
    void paint(const LabelMask &mask, std::vector<uint8_t> &pixels) const;

    const SegmenterParameters &parameters() const noexcept { return parameters_; }
    uf_info info() const { return engine_.info(); }

  private:
    SegmenterParameters parameters_;
    unet_fast::Engine engine_;
    unet_fast::RunOptions options_;
    std::vector<uint8_t> converted_; // the frame as grey or as colours, where the network takes the other
    std::vector<uint8_t> full_size_; // labels before they are resized
};

// A FrameSegmenter that can be exchanged while frames come, and what there is to say about its health.  `load`,
// `health` and `process` may each be called from a thread of their own.
class SegmentationService {
  public:
    // Takes the place of the present segmenter once it is ready, and health() counts anew.  After an exception the
    // present one stays.
    void load(const SegmenterParameters &parameters);

    // Segments and, where `colours` is not null, paints; false, after which the results hold nothing useful, where
    // there is no engine or the frame is not accepted: health() says why.
    bool process(const Frame &frame, LabelMask &mask, std::vector<uint8_t> *colours);

    enum class Level { ok, warning, error };
    struct Health {
        Level level = Level::ok;
        std::string summary;
        std::vector<std::pair<std::string, std::string>> details;
    };
    Health health() const;

    // Parameters of the segmenter that is at work; the defaults where there is none.
    SegmenterParameters parameters() const;

  private:
    static constexpr size_t kept_latencies = 1000;
    mutable std::mutex mutex_; // for all below, held only for moments
    std::shared_ptr<FrameSegmenter> segmenter_;
    LatencyLog latencies_{kept_latencies};
    size_t failures_ = 0;
    bool last_failed_ = false;
    std::string last_error_;
};

} // namespace example

#endif // FRAME_SEGMENTER_HPP
