// The U-Net as a nodelet: messages in and out of example::SegmentationService, which does the work.  An image that is
// published in the same nodelet manager is read where it lies.
//
// Parameters are read once; engine_file_path, threshold and tiling may change later, by dynamic_reconfigure.  A new
// engine is opened beside the old one, which goes on segmenting meanwhile, and for good if the new one cannot be
// opened.
#include <memory>

#include <diagnostic_updater/diagnostic_updater.h>
#include <dynamic_reconfigure/server.h>
#include <image_transport/image_transport.h>
#include <nodelet/nodelet.h>
#include <pluginlib/class_list_macros.hpp>
#include <ros/ros.h>
#include <sensor_msgs/Image.h>
#include <sensor_msgs/image_encodings.h>
#include <unet_fast_ros/UNetConfig.h>

#include "../../common/frame_segmenter.hpp"

namespace unet_fast_ros {

class UNetNodelet : public nodelet::Nodelet {
  private:
    using Reconfigure = dynamic_reconfigure::Server<UNetConfig>;
    using Diagnostics = diagnostic_updater::DiagnosticStatusWrapper;

    void onInit() override {
        ros::NodeHandle &node = getNodeHandle(), &own = getPrivateNodeHandle();
        read_parameters(own);
        // On the queue of many threads: images go on while an engine is opened.  Calls load() once, now.
        reconfigure_ = std::make_unique<Reconfigure>(reconfigure_mutex_, getMTPrivateNodeHandle());
        reconfigure_->setCallback([this](UNetConfig &config, uint32_t) { load(config); });

        updater_ = std::make_unique<diagnostic_updater::Updater>(node, own, getName());
        updater_->setHardwareID("unet_fast");
        updater_->add("segmentation", this, &UNetNodelet::diagnose);
        timer_ = getMTNodeHandle().createWallTimer(ros::WallDuration(0.5),
                                                   [this](const ros::WallTimerEvent &) { updater_->update(); });

        image_transport::ImageTransport transport(node);
        raw_ = transport.advertise("unet/raw_segmentation_mask", 1);
        colored_ = transport.advertise("unet/colored_segmentation_mask", 1);
        images_ = transport.subscribe("image", 1, &UNetNodelet::segment, this); // of images that wait, only the newest
    }

    // Those that are not in UNet.cfg.
    void read_parameters(const ros::NodeHandle &own) {
        own.getParam("network_output_type", parameters_.network_output_type);
        own.getParam("color_segmentation_mask_encoding", parameters_.color_segmentation_mask_encoding);
        std::vector<int> palette;
        own.getParam("color_palette", palette);
        parameters_.color_palette.assign(palette.begin(), palette.end());
        own.getParam("mask_width", parameters_.mask_width);
        own.getParam("mask_height", parameters_.mask_height);
        own.getParam("device", parameters_.device);
        own.getParam("precision", parameters_.precision);
        own.getParam("threads", parameters_.threads);
    }

    void load(UNetConfig &config) {
        example::SegmenterParameters wanted = parameters_;
        wanted.engine_file_path = config.engine_file_path;
        wanted.threshold = config.threshold;
        wanted.tiling = config.tiling;
        try {
            service_.load(wanted);
            NODELET_INFO("segmenting with %s", config.engine_file_path.c_str());
        } catch (const std::exception &error) {
            NODELET_ERROR("%s", error.what());
            // What dynamic_reconfigure tells its clients is what is in force.
            const example::SegmenterParameters present = service_.parameters();
            config.engine_file_path = present.engine_file_path;
            config.threshold = present.threshold;
            config.tiling = present.tiling;
        }
    }

    void segment(const sensor_msgs::ImageConstPtr &image) {
        const bool raw_wanted = raw_.getNumSubscribers() > 0, colored_wanted = colored_.getNumSubscribers() > 0;
        if (!raw_wanted && !colored_wanted)
            return;
        const example::Frame frame{static_cast<int>(image->height),
                                   static_cast<int>(image->width),
                                   image->encoding,
                                   image->is_bigendian != 0,
                                   image->step,
                                   image->data};
        example::LabelMask mask;
        const auto colored = boost::make_shared<sensor_msgs::Image>();
        if (!service_.process(frame, mask, colored_wanted ? &colored->data : nullptr)) {
            NODELET_ERROR_THROTTLE(5.0, "%s", service_.health().summary.c_str());
            return;
        }
        if (colored_wanted) {
            describe(*colored, *image, mask, parameters_.color_segmentation_mask_encoding, 3);
            colored_.publish(sensor_msgs::ImageConstPtr(colored));
        }
        if (raw_wanted) {
            const auto raw = boost::make_shared<sensor_msgs::Image>();
            raw->data = std::move(mask.labels);
            describe(*raw, *image, mask, sensor_msgs::image_encodings::MONO8, 1);
            raw_.publish(sensor_msgs::ImageConstPtr(raw));
        }
    }

    // All of a message but its pixels; stamp and frame are those of the image.
    static void describe(sensor_msgs::Image &message, const sensor_msgs::Image &image, const example::LabelMask &mask,
                         const std::string &encoding, uint32_t bytes_per_pixel) {
        message.header = image.header;
        message.height = static_cast<uint32_t>(mask.height);
        message.width = static_cast<uint32_t>(mask.width);
        message.encoding = encoding;
        message.is_bigendian = 0;
        message.step = message.width * bytes_per_pixel;
    }

    void diagnose(Diagnostics &status) {
        const example::SegmentationService::Health health = service_.health();
        using Level = example::SegmentationService::Level;
        const auto level = health.level == Level::ok        ? diagnostic_msgs::DiagnosticStatus::OK
                           : health.level == Level::warning ? diagnostic_msgs::DiagnosticStatus::WARN
                                                            : diagnostic_msgs::DiagnosticStatus::ERROR;
        status.summary(level, health.summary);
        for (const auto &[key, value] : health.details)
            status.add(key, value);
    }

    example::SegmenterParameters parameters_; // engine_file_path, threshold and tiling are the service's to know
    example::SegmentationService service_;
    image_transport::Publisher raw_, colored_;
    image_transport::Subscriber images_;
    boost::recursive_mutex reconfigure_mutex_;
    std::unique_ptr<Reconfigure> reconfigure_;
    std::unique_ptr<diagnostic_updater::Updater> updater_;
    ros::WallTimer timer_;
};

} // namespace unet_fast_ros

PLUGINLIB_EXPORT_CLASS(unet_fast_ros::UNetNodelet, nodelet::Nodelet)
