#!/usr/bin/python3
"""What tests/test_examples.py asks of a running ROS 1 node, in the Python that ROS is installed for.

ros_client.py record FOLDER             the next raw and coloured mask of one image: FOLDER/{raw,colored}.bin, and
                                        on stdout what their messages say
ros_client.py diagnostics LEVEL         the first status of that level (0 ok, 1 warning, 2 error)
ros_client.py set NODE ENGINE_FILE_PATH the path that is in force after asking for this one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rospy
from diagnostic_msgs.msg import DiagnosticArray
from dynamic_reconfigure.client import Client
from sensor_msgs.msg import Image

PATIENCE_SECONDS = 30


def record(folder: Path) -> dict[str, dict[str, object]]:
    masks: dict[str, dict[object, Image]] = {"raw": {}, "colored": {}}
    for name, seen in masks.items():
        topic = f"unet/{name}_segmentation_mask"
        rospy.Subscriber(topic, Image, lambda image, seen=seen: seen.setdefault(image.header.stamp, image))
    deadline = rospy.get_time() + PATIENCE_SECONDS
    while not (both := set(masks["raw"]) & set(masks["colored"])):
        if rospy.get_time() > deadline:
            sys.exit(f"no pair of masks: {[len(seen) for seen in masks.values()]}")
        rospy.sleep(0.05)
    stamp = min(both)
    said = {}
    for name, seen in masks.items():
        image = seen[stamp]
        (folder / f"{name}.bin").write_bytes(image.data)
        said[name] = {
            "shape": [image.height, image.width],
            "encoding": image.encoding,
            "step": image.step,
            "frame_id": image.header.frame_id,
        }
    return said


def diagnostics(level: int) -> dict[str, str]:
    deadline = rospy.get_time() + PATIENCE_SECONDS
    while rospy.get_time() < deadline:
        for status in rospy.wait_for_message("/diagnostics", DiagnosticArray, PATIENCE_SECONDS).status:
            if status.name.endswith("segmentation") and status.level == level:
                return {"message": status.message} | {entry.key: entry.value for entry in status.values}
    sys.exit(f"no diagnostics of level {level}")


def main(command: str, *arguments: str) -> None:
    rospy.init_node("test_client", anonymous=True)
    if command == "record":
        answer: object = record(Path(arguments[0]))
    elif command == "diagnostics":
        answer = diagnostics(int(arguments[0]))
    else:
        client = Client(arguments[0], timeout=PATIENCE_SECONDS)
        answer = client.update_configuration({"engine_file_path": arguments[1]})["engine_file_path"]
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
