// The U-Net as a ROS 2 component: messages in and out of example::SegmentationService, which does the work; the same
// topics and parameters as the ROS 1 nodelet (../ros1), and as Isaac ROS U-Net.
//
// engine_file_path, threshold and tiling may change while it runs: a new engine is opened beside the old one, and a
// parameter that cannot be used is refused.  In a container of several threads images go on meanwhile.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <diagnostic_updater/diagnostic_updater.hpp>
#include <rclcpp/rclcpp.hpp>
#include <rclcpp_components/register_node_macro.hpp>
#include <sensor_msgs/image_encodings.hpp>
#include <sensor_msgs/msg/image.hpp>

#include "../../common/frame_segmenter.hpp"

namespace unet_fast_ros {

class UNetComponent : public rclcpp::Node {
  public:
    explicit UNetComponent(const rclcpp::NodeOptions &options) : Node("unet", options), updater_(this) {
        const example::SegmenterParameters defaults;
        parameters_.engine_file_path = declare_parameter<std::string>("engine_file_path", "");
        parameters_.threshold = declare_parameter<double>("threshold", defaults.threshold);
        parameters_.tiling = declare_parameter<std::string>("tiling", defaults.tiling);
        const auto fixed = [](const char *description) {
            rcl_interfaces::msg::ParameterDescriptor descriptor;
            descriptor.description = description;
            descriptor.read_only = true;
            return descriptor;
        };
        parameters_.network_output_type = declare_parameter<std::string>(
            "network_output_type", "", fixed("sigmoid, softmax or argmax, which the engine must be; '': any"));
        color_encoding_ = declare_parameter<std::string>(
            "color_segmentation_mask_encoding", defaults.color_segmentation_mask_encoding, fixed("rgb8 or bgr8"));
        parameters_.color_segmentation_mask_encoding = color_encoding_;
        parameters_.color_palette = declare_parameter<std::vector<int64_t>>(
            "color_palette", std::vector<int64_t>(), fixed("0xRRGGBB of each label; empty: a palette of its own"));
        parameters_.mask_width =
            static_cast<int>(declare_parameter<int64_t>("mask_width", 0, fixed("of the masks; 0: that of the image")));
        parameters_.mask_height =
            static_cast<int>(declare_parameter<int64_t>("mask_height", 0, fixed("of the masks; 0: that of the image")));
        parameters_.device = declare_parameter<std::string>("device", defaults.device, fixed("auto, cpu or cuda:N"));
        parameters_.precision =
            declare_parameter<std::string>("precision", defaults.precision, fixed("auto, float32, bf16 or fp16"));
        parameters_.threads =
            static_cast<int>(declare_parameter<int64_t>("threads", 0, fixed("of the CPU; 0: one per core")));
        try {
            service_.load(parameters_);
        } catch (const std::exception &error) {
            RCLCPP_ERROR(get_logger(), "%s", error.what());
        }
        on_parameters_ = add_on_set_parameters_callback(
            [this](const std::vector<rclcpp::Parameter> &changed) { return load(changed); });

        updater_.setHardwareID("unet_fast");
        updater_.add("segmentation", this, &UNetComponent::diagnose);
        raw_ = create_publisher<sensor_msgs::msg::Image>("unet/raw_segmentation_mask", rclcpp::QoS(1));
        colored_ = create_publisher<sensor_msgs::msg::Image>("unet/colored_segmentation_mask", rclcpp::QoS(1));
        rclcpp::SubscriptionOptions own_group;
        own_group.callback_group = create_callback_group(rclcpp::CallbackGroupType::MutuallyExclusive);
        images_ = create_subscription<sensor_msgs::msg::Image>(
            "image", rclcpp::SensorDataQoS().keep_last(1),
            [this](sensor_msgs::msg::Image::ConstSharedPtr image) { segment(*image); }, own_group);
    }

  private:
    rcl_interfaces::msg::SetParametersResult load(const std::vector<rclcpp::Parameter> &changed) {
        example::SegmenterParameters wanted = parameters_;
        rcl_interfaces::msg::SetParametersResult result;
        result.successful = true;
        bool ours = false;
        for (const rclcpp::Parameter &parameter : changed) {
            const std::string &name = parameter.get_name();
            ours = ours || name == "engine_file_path" || name == "threshold" || name == "tiling";
            if (name == "engine_file_path")
                wanted.engine_file_path = parameter.as_string();
            else if (name == "threshold")
                wanted.threshold = parameter.as_double();
            else if (name == "tiling")
                wanted.tiling = parameter.as_string();
        }
        if (!ours)
            return result;
        try {
            service_.load(wanted);
            parameters_ = wanted;
        } catch (const std::exception &error) {
            result.successful = false;
            result.reason = error.what();
        }
        return result;
    }

    void segment(const sensor_msgs::msg::Image &image) {
        const bool raw_wanted = raw_->get_subscription_count() > 0;
        const bool colored_wanted = colored_->get_subscription_count() > 0;
        if (!raw_wanted && !colored_wanted)
            return;
        const example::Frame frame{static_cast<int>(image.height),
                                   static_cast<int>(image.width),
                                   image.encoding,
                                   image.is_bigendian != 0,
                                   image.step,
                                   image.data};
        example::LabelMask mask;
        auto colored = std::make_unique<sensor_msgs::msg::Image>();
        if (!service_.process(frame, mask, colored_wanted ? &colored->data : nullptr)) {
            RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 5000, "%s", service_.health().summary.c_str());
            return;
        }
        if (colored_wanted) {
            describe(*colored, image, mask, color_encoding_, 3);
            colored_->publish(std::move(colored));
        }
        if (raw_wanted) {
            auto raw = std::make_unique<sensor_msgs::msg::Image>();
            raw->data = std::move(mask.labels);
            describe(*raw, image, mask, sensor_msgs::image_encodings::MONO8, 1);
            raw_->publish(std::move(raw));
        }
    }

    // All of a message but its pixels; stamp and frame are those of the image.
    static void describe(sensor_msgs::msg::Image &message, const sensor_msgs::msg::Image &image,
                         const example::LabelMask &mask, const std::string &encoding, uint32_t bytes_per_pixel) {
        message.header = image.header;
        message.height = static_cast<uint32_t>(mask.height);
        message.width = static_cast<uint32_t>(mask.width);
        message.encoding = encoding;
        message.is_bigendian = 0;
        message.step = message.width * bytes_per_pixel;
    }

    void diagnose(diagnostic_updater::DiagnosticStatusWrapper &status) {
        const example::SegmentationService::Health health = service_.health();
        using Level = example::SegmentationService::Level;
        const auto level = health.level == Level::ok        ? diagnostic_msgs::msg::DiagnosticStatus::OK
                           : health.level == Level::warning ? diagnostic_msgs::msg::DiagnosticStatus::WARN
                                                            : diagnostic_msgs::msg::DiagnosticStatus::ERROR;
        status.summary(level, health.summary);
        for (const auto &[key, value] : health.details)
            status.add(key, value);
    }

    std::string color_encoding_;
    example::SegmenterParameters parameters_; // not for the thread of the images
    example::SegmentationService service_;
    diagnostic_updater::Updater updater_;
    rclcpp::Publisher<sensor_msgs::msg::Image>::SharedPtr raw_, colored_;
    rclcpp::Subscription<sensor_msgs::msg::Image>::SharedPtr images_;
    rclcpp::node_interfaces::OnSetParametersCallbackHandle::SharedPtr on_parameters_;
};

} // namespace unet_fast_ros

RCLCPP_COMPONENTS_REGISTER_NODE(unet_fast_ros::UNetComponent)
