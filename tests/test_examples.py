"""The examples, built as their READMEs say and run; what they share, also under sanitizers.

OpenCV (libopencv-dev) and ROS 1 (examples/ros1/README.md) are looked for as Debian installs them; what needs one that
is not here is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import unet_fast
from tests.conftest import ROOT
from tests.programs import SEARCH, WARNINGS, compile_program, run, tool
from unet_fast import synthetic
from unet_fast.images import read_pages, to_channels, write_image
from unet_fast.pretrained import pretrained_weights

EXAMPLES = ROOT / "examples"
PROGRAMS = ROOT / "tests" / "cpp"
DEBIAN_PYTHON = Path("/usr/bin/python3")  # the one that Debian's ROS is installed for
ROS_PARTS = ("nodelet", "image_publisher", "image_transport", "diagnostic_updater", "dynamic_reconfigure", "rospy")

Mask = NDArray[np.uint8]

pytestmark = pytest.mark.skipif(
    not (unet_fast.library_dir() / "libunet_fast.so").exists(), reason=f"no library in {unet_fast.library_dir()}"
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that ships with the package, frozen."""
    path = tmp_path_factory.mktemp("shipped") / "relunet16.unet"
    unet_fast.freeze(pretrained_weights(), path, targets=("cpu",))
    return path


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest) -> list[Mask]:
    """Grey micrographs of 256 x 256: real ones where they are at hand, else drawn ones."""
    try:
        folder: Path = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return [synthetic.micrograph(seed, 256, 256)[0] for seed in range(4)]
    return [read_pages(path)[0] for path in sorted((folder / "dsb2018" / "test" / "images").iterdir())[:4]]


@pytest.fixture(scope="module")
def stained(request: pytest.FixtureRequest) -> Mask:
    """A colour image, (256, 256, 3)."""
    try:
        folder: Path = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        grey = synthetic.micrograph(9, 256, 256)[0]
        return np.stack([grey, 255 - grey, grey // 2], axis=2)
    return read_pages(min((folder / "dsb2018_rgb" / "test" / "images").iterdir()))[0]


def sh_blocks(example: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (EXAMPLES / example / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def build_as_told(example: str, block: int, folder: Path) -> Path:
    """Runs a shell block of an example's README in a copy of the folder examples/; the example in that copy."""
    text = sh_blocks(example)[block]
    for name in ("c++", *(name for name in ("cmake", "pkg-config", "unet-fast") if name in text)):
        tool(name)
    shutil.copytree(EXAMPLES, folder / "examples")
    here = folder / "examples" / example
    path = {"PATH": SEARCH, "CXXFLAGS": "-Werror"}
    command = ["bash", "-e", "-c", text]
    result = subprocess.run(command, cwd=here, env=os.environ | path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return here


def refused(*command: str | Path, without: tuple[str, ...] = ()) -> str:
    """What a program that must fail says on stderr; `without` these environment variables."""
    environment = {key: value for key, value in os.environ.items() if key not in without}
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, timeout=60
    )
    assert result.returncode == 1, f"{command} gives {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stderr


# What the examples share


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_frame_ring_and_latency_log(sanitizer: str, tmp_path: Path) -> None:
    run(sanitized(sanitizer, tmp_path / "program", PROGRAMS / "test_frame_ring.cpp"))


def test_frame_segmenter(engines: Path, tmp_path: Path) -> None:
    sources = (PROGRAMS / "test_frame_segmenter.cpp", EXAMPLES / "common" / "frame_segmenter.cpp")
    run(sanitized("address,undefined", tmp_path / "program", *sources), engines)


def sanitized(sanitizer: str, program: Path, *sources: Path) -> Path:
    """A program built with a sanitizer; skips the test where the compiler has none."""
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    nothing = program.with_name("nothing.cpp")
    nothing.write_text("int main() { return 0; }\n")
    try:
        run(compile_program(program.with_name("nothing"), nothing, library=unet_fast.library_dir(), flags=flags))
    except AssertionError as error:
        pytest.skip(f"no -fsanitize={sanitizer} here: {str(error).splitlines()[-1]}")
    return compile_program(program, *sources, library=unet_fast.library_dir(), flags=flags)


# examples/cpp, and the header that it shows


def opencv_flags() -> list[str]:
    """Of the compiler; skips the test where OpenCV 4 is not installed."""
    found = subprocess.run([tool("pkg-config"), "--cflags", "opencv4"], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("needs OpenCV 4 (libopencv-dev)")
    return found.stdout.replace("-I", "-isystem").split()


def test_opencv_header(engines: Path, tmp_path: Path) -> None:
    include, library = ROOT / "csrc" / "include", unet_fast.library_dir()
    run(tool("c++"), "-std=c++17", *WARNINGS, *opencv_flags(), f"-I{include}", PROGRAMS / "test_opencv_header.cpp",
        f"-L{library}", f"-Wl,-rpath,{library}", "-lunet_fast", "-lopencv_imgproc", "-lopencv_core",
        "-o", tmp_path / "program")  # fmt: skip
    run(tmp_path / "program", engines)


@pytest.fixture(scope="module")
def segment_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    opencv_flags()
    return build_as_told("cpp", 0, tmp_path_factory.mktemp("video")) / "build" / "segment_video"


@pytest.fixture(scope="module")
def frames(pictures: list[Mask], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered pictures, as OpenCV names them."""
    folder = tmp_path_factory.mktemp("frames")
    for index, picture in enumerate(pictures):
        write_image(folder / f"{index:03}.png", picture)
    return folder / "%03d.png"


def test_video_masks_are_those_of_python(
    segment_video: Path, shipped: Path, frames: Path, pictures: list[Mask], tmp_path: Path
) -> None:
    video = tmp_path / "overlay.avi"
    said = run(segment_video, shipped, frames, "--masks", tmp_path, "--output", video)
    assert f"{len(pictures)} frames of 256 x 256" in said
    percentiles = [float(value) for value in re.findall(r"(?:p\S+|max) ([\d.]+)", said)]
    assert len(percentiles) == 5
    assert percentiles == sorted(percentiles)
    assert percentiles[0] > 0
    engine = unet_fast.Engine(shipped)
    for index, picture in enumerate(pictures):
        mask = read_pages(tmp_path / f"mask_{index:06}.png")[0]
        assert np.array_equal(mask, engine.segment(picture)), index
    # The overlay is a video that can be read, here by the program itself.
    again = run(segment_video, shipped, video, "--masks", tmp_path / "again", "--frames", "2")
    assert "2 frames of 256 x 256" in again
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_video_in_a_window(segment_video: Path, shipped: Path, frames: Path) -> None:
    said = run(segment_video, shipped, frames, QT_QPA_PLATFORM="offscreen")
    assert "frame to mask" in said


def test_video_refuses(segment_video: Path, shipped: Path, frames: Path, tmp_path: Path) -> None:
    headless = ("--masks", tmp_path)
    assert "No such file" in refused(segment_video, tmp_path / "none.unet", frames, *headless)
    assert "cannot open" in refused(segment_video, shipped, tmp_path / "none.avi", *headless)
    assert "--frames is '0'" in refused(segment_video, shipped, frames, *headless, "--frames", "0")
    assert "usage" in refused(segment_video, shipped)
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    assert "no display" in refused(segment_video, shipped, frames, without=displays)


# examples/instrument


@pytest.fixture(scope="module")
def instrument(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_as_told("instrument", 0, tmp_path_factory.mktemp("instrument")) / "build" / "instrument"


@pytest.fixture(scope="module")
def scene(pictures: list[Mask], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PGM files."""
    folder = tmp_path_factory.mktemp("scene")
    for index, picture in enumerate(pictures):
        height, width = picture.shape
        (folder / f"{index}.pgm").write_bytes(b"P5\n# a comment\n%d %d\n255\n" % (width, height) + picture.tobytes())
    return folder


def counts(said: str) -> tuple[int, int, int, int]:
    """(segmented, too late, passed over, lost) of the instrument's report."""
    pattern = r"frames: (\d+) segmented, (\d+) of them too late; (\d+) passed over for a newer one, (\d+) lost"
    segmented, late, passed_over, lost = map(int, re.findall(pattern, said)[0])
    return segmented, late, passed_over, lost


def test_instrument_masks_are_those_of_python(
    instrument: Path, shipped: Path, scene: Path, pictures: list[Mask], tmp_path: Path
) -> None:
    """At a rate so low that no frame is passed over, each picture's mask is that of Python."""
    said = run(instrument, shipped, "--images", scene, "--rate", "2", "--frames", "6", "--deadline", "10000",
               "--save", tmp_path)  # fmt: skip
    assert counts(said) == (6, 0, 0, 0), said
    engine = unet_fast.Engine(shipped)
    for index, picture in enumerate(pictures):
        header, pixels = (tmp_path / f"{index}.pgm").read_bytes().split(b"\n255\n", 1)
        assert header == b"P5\n256 256"
        mask = np.frombuffer(pixels, np.uint8).reshape(256, 256)
        assert np.array_equal(mask, engine.segment(picture)), index
    share = 100 * np.count_nonzero(engine.segment(pictures[5 % len(pictures)])) / 256**2
    assert f"last decision: frame 5, {share:.2f} % foreground" in said


def test_instrument_counts_what_it_misses(instrument: Path, shipped: Path) -> None:
    """Far too many frames: each is accounted for, and those that are segmented are too late."""
    said = run(instrument, shipped, "--rate", "20000", "--frames", "3000", "--buffers", "3", "--deadline", "0.001")
    segmented, late, passed_over, lost = counts(said)
    assert segmented + passed_over + lost == 3000, said
    assert segmented == late > 0
    assert passed_over + lost > 0
    assert "last decision: frame 0, 0.00 % foreground" in said


def test_instrument_in_real_time(instrument: Path, shipped: Path) -> None:
    command = [str(instrument), str(shipped), "--rate", "20", "--frames", "10", "--realtime", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "ulimit" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    segmented, _, passed_over, lost = counts(result.stdout)
    assert segmented + passed_over + lost == 10


def test_instrument_refuses(instrument: Path, shipped: Path, engines: Path, tmp_path: Path) -> None:
    assert "usage" in refused(instrument)
    assert "--rate is '0'" in refused(instrument, shipped, "--rate", "0")
    assert "--buffers is '1'" in refused(instrument, shipped, "--buffers", "1")
    assert "no .pgm file" in refused(instrument, shipped, "--images", tmp_path)
    assert "takes 3" in refused(instrument, engines / "rgb.unet")
    (tmp_path / "a.pgm").write_bytes(b"P5 250 250 255\n" + bytes(250 * 250))
    assert "16" in refused(instrument, shipped, "--images", tmp_path)  # the size is not legal
    (tmp_path / "b.pgm").write_bytes(b"P5 256 256 255\n" + bytes(256 * 256))
    assert "the pictures before it 250 x 250" in refused(instrument, shipped, "--images", tmp_path)
    (tmp_path / "a.pgm").write_bytes(b"P5 250 250 255\n")
    assert "cut short" in refused(instrument, shipped, "--images", tmp_path)


def test_instrument_in_one_line(tmp_path: Path) -> None:
    program = build_as_told("instrument", 1, tmp_path) / "instrument"
    library = unet_fast.library_dir()
    result = subprocess.run(
        [program], env=os.environ | {"LD_LIBRARY_PATH": str(library)}, capture_output=True, text=True
    )
    assert "usage: instrument" in result.stderr


# examples/ros1


class Ros:
    """A master and the nodes of a test, in the environment of a catkin workspace."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment
        self.folder = folder

    @contextmanager
    def running(self, name: str, *command: str | Path) -> Iterator[None]:
        """A process while the block runs; its output goes to a file that a failure shows."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, env=self.environment,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        try:
            yield
        except BaseException:
            print(f"{name}:\n{log.read_text(errors='replace')}")
            raise
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def ask(self, *question: str | Path) -> Any:
        """The answer of tests/ros_client.py."""
        command = [str(part) for part in (DEBIAN_PYTHON, ROOT / "tests" / "ros_client.py", *question)]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, f"{question}\n{result.stdout}{result.stderr}"
        return json.loads(result.stdout.splitlines()[-1])

    def publishing(self, picture: Path) -> Any:
        return self.running(
            "image_publisher", "/usr/lib/nodelet/nodelet", "standalone", "image_publisher/image_publisher",
            f"_filename:={picture}", "__name:=camera",
        )  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catkin workspace with examples/ros1, built."""
    missing = [part for part in ROS_PARTS if not Path(f"/usr/share/{part}/package.xml").exists()]
    if missing or not shutil.which("catkin_make") or not shutil.which("roscore"):
        pytest.skip(f"needs ROS 1 as Debian packages it; missing: {', '.join(missing) or 'catkin_make or roscore'}")
    folder = tmp_path_factory.mktemp("catkin")
    (folder / "src").mkdir()
    (folder / "src" / "unet_fast_ros").symlink_to(EXAMPLES / "ros1")
    options = [f"-Dunet_fast_DIR={unet_fast.cmake_dir()}", "-DCMAKE_CXX_FLAGS=-Werror"]
    result = subprocess.run(
        ["catkin_make", "-j2", *options], cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return folder


@pytest.fixture
def ros(workspace: Path, tmp_path: Path) -> Iterator[Ros]:
    """A master on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ROS_HOME": str(tmp_path), "ROS_IP": "127.0.0.1",
        "ROS_MASTER_URI": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    script = f". {workspace}/devel/setup.sh && env -0"
    printed = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    machine = Ros(dict(line.split("=", 1) for line in printed.split("\0") if line), tmp_path)
    with machine.running("roscore", "roscore", "-p", str(port)):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as master:
                if master.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield machine


@pytest.mark.slow  # builds a catkin workspace
def test_ros1_node(ros: Ros, workspace: Path, shipped: Path, pictures: list[Mask], tmp_path: Path) -> None:
    """A node that starts without an engine, gets one, and keeps it when the next one cannot be opened."""
    write_image(tmp_path / "picture.png", pictures[0])
    node = workspace / "devel" / "lib" / "unet_fast_ros" / "unet_node"
    with (
        ros.running("node", node, "_engine_file_path:=/nowhere.unet", "_device:=cpu", "image:=camera/image_raw"),
        ros.publishing(tmp_path / "picture.png"),
    ):
        assert "cannot open /nowhere.unet" in ros.ask("diagnostics", "2")["message"]
        assert ros.ask("set", "/unet", shipped) == str(shipped)
        said = ros.ask("record", tmp_path)
        assert ros.ask("set", "/unet", "/nowhere.unet") == str(shipped)
        health = ros.ask("diagnostics", "0")
    assert said["raw"] == {"shape": [256, 256], "encoding": "mono8", "step": 256, "frame_id": "camera"}
    assert said["colored"] == {"shape": [256, 256], "encoding": "rgb8", "step": 768, "frame_id": "camera"}
    labels = np.fromfile(tmp_path / "raw.bin", np.uint8).reshape(256, 256)
    assert np.array_equal(labels * 255, unet_fast.Engine(shipped).segment(pictures[0]))
    colours = np.fromfile(tmp_path / "colored.bin", np.uint8).reshape(256, 256, 3)
    assert np.array_equal(colours, np.array([[0, 0, 0], [0, 200, 255]], np.uint8)[labels])
    assert health["engine_file_path"] == str(shipped)
    assert int(health["frames"]) > 0
    assert health["failed frames"] == "0"


@pytest.mark.slow
def test_ros1_nodelet_by_launch_file(ros: Ros, shipped: Path, stained: Mask, tmp_path: Path) -> None:
    """Parameters of Isaac ROS U-Net, from the launch file: masks of half the size, colours in the other order."""
    write_image(tmp_path / "picture.png", stained)
    arguments = {
        "engine_file_path": shipped, "image": "camera/image_raw", "device": "cpu", "network_output_type": "sigmoid",
        "color_segmentation_mask_encoding": "bgr8", "mask_width": 128, "mask_height": 64,
    }  # fmt: skip
    launch = [f"{key}:={value}" for key, value in arguments.items()]
    with (
        ros.running("nodelet", "roslaunch", "unet_fast_ros", "unet.launch", *launch),
        ros.publishing(tmp_path / "picture.png"),
    ):
        said = ros.ask("record", tmp_path)
    assert said["raw"]["shape"] == [64, 128]
    assert said["colored"] == {"shape": [64, 128], "encoding": "bgr8", "step": 384, "frame_id": "camera"}
    mask = unet_fast.Engine(shipped).segment(to_channels(stained, 1)[:, :, 0])
    labels = np.fromfile(tmp_path / "raw.bin", np.uint8).reshape(64, 128)
    assert np.array_equal(labels * 255, mask[2::4, 1::2])  # the middle of 4 x 2 pixels
    colours = np.fromfile(tmp_path / "colored.bin", np.uint8).reshape(64, 128, 3)
    assert np.array_equal(colours, np.array([[0, 0, 0], [255, 200, 0]], np.uint8)[labels])


# examples/ros2


def test_ros2_component_compiles(tmp_path: Path) -> None:
    distributions = sorted(Path("/opt/ros").glob("*/share/rclcpp"))
    if not distributions:
        pytest.skip("needs ROS 2 in /opt/ros")
    setup = distributions[-1].parent.parent / "setup.sh"
    cmake = f"cmake -S {EXAMPLES / 'ros2'} -B {tmp_path} -Dunet_fast_DIR={unet_fast.cmake_dir()}"
    run("sh", "-c", f". {setup} && {cmake} -DCMAKE_CXX_FLAGS=-Werror && cmake --build {tmp_path}", timeout=900)
