// The nodelet as a process of its own: rosrun unet_fast_ros unet_node _engine_file_path:=cells.unet image:=camera/image
#include <nodelet/loader.h>
#include <ros/ros.h>

int main(int count, char **arguments) {
    ros::init(count, arguments, "unet");
    nodelet::Loader loader;
    const nodelet::V_string remaining(arguments + 1, arguments + count);
    if (!loader.load(ros::this_node::getName(), "unet_fast_ros/UNetNodelet", ros::names::getRemappings(), remaining))
        return 1;
    ros::spin();
    return 0;
}
