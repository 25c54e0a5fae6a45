"""The sdist and the wheel: built offline, accepted by auditwheel, at work in clean environments (`make test-wheel`)."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.programs import configure, offline, run, run_bytes, tool
from unet_fast import Engine, pretrained_engine, synthetic

slow = pytest.mark.slow  # builds the library once per Python
NEWEST, OLDEST = 14, 11  # minor versions of Python 3 that are looked for

# What runs in each clean environment; prints the mask of the shipped network.
AT_WORK = """
import sys
from importlib.metadata import entry_points
import unet_fast
from unet_fast import synthetic
assert unet_fast.__file__.startswith(sys.prefix), unet_fast.__file__
assert {"torch", "triton", "scipy"}.isdisjoint(sys.modules)
(prefix,) = entry_points(group="cmake.prefix")
assert prefix.load() is unet_fast
for folder, name in (
    (unet_fast.cmake_dir(), "unet_fast-config.cmake"),
    (unet_fast.pkgconfig_dir(), "unet_fast.pc"),
    (unet_fast.include_dir(), "unet_fast.h"),
    (unet_fast.library_dir(), "libunet_fast.so"),
):
    assert (folder / name).is_file(), (folder, name)
image, _ = synthetic.micrograph(5, 200, 300)
mask = unet_fast.pretrained_engine(device="cpu", precision="float32").segment(image)
sys.stdout.buffer.write(mask.tobytes())
"""


def test_type_stubs_are_those_of_the_module(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    settings = tmp_path / "mypy.ini"
    # Errors in the package's own code are the linter's to find.
    settings.write_text("[mypy]\nignore_missing_imports = True\nignore_errors = True\n")
    allowed = tmp_path / "allowed"
    # Of pybind11: the metaclass of each class, and the __init__ of those that only functions of the module make.
    allowed.write_text("unet_fast\\._native\\.[A-Z]\\w+\nunet_fast\\._native\\.(Event|Memory)\\.__init__\n")
    stubtest = (sys.executable, "-m", "mypy.stubtest", "unet_fast._native", "--concise")
    run(*stubtest, "--mypy-config-file", settings, "--allowlist", allowed, "--ignore-unused-allowlist")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the package build")
    folder = tmp_path_factory.mktemp("sdist")
    left_out = shutil.ignore_patterns("build", ".*", "*.egg-info", "__pycache__", "*.so", "lib", "demo-output")
    shutil.copytree(ROOT, folder / "tree", ignore=left_out, symlinks=True)
    build = (sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder / "dist", folder / "tree")
    run(*offline(*build))
    (archive,) = (folder / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist without a network, then repaired by auditwheel."""
    if importlib.util.find_spec("auditwheel") is None:
        pytest.skip("needs auditwheel")
    tool("patchelf")
    folder = sdist.parent.parent / "wheel"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "dist", tree)
    run(*offline(*build), timeout=1800)
    (built,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", built, "--wheel-dir", folder / "repaired")
    (repaired,) = (folder / "repaired").iterdir()
    return repaired


@slow
def test_sdist_holds_what_it_takes(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("CMakeLists.txt", "cmake/unet_fast.pc.in", "csrc/include/unet_fast.h", "csrc/export.map", "LICENSE",
                 "tests/consumer/main.c", "pretrained/relunet16_micrographs.safetensors"):  # fmt: skip
        assert name in names
    assert [name for name in names if re.search(r"\.(so|pyc|o)$|^build/", name)] == []


@slow
def test_wheel_is_manylinux(wheel: Path) -> None:
    assert re.search(r"-manylinux_\d+_\d+_\w+\.whl$", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "unet_fast/lib/libunet_fast.so.0" in names
    assert "unet_fast/lib/cmake/unet_fast/unet_fast-config.cmake" in names
    assert "unet_fast/py.typed" in names
    assert [name for name in names if re.match(r"unet_fast\.libs/|tests/|train/|csrc/", name)] == []
    assert wheel.stat().st_size < 10e6


def pythons() -> list[Path]:
    """This Python first, then others that are installed, by pyenv or in PATH; one of each version."""
    found = {sys.version_info[1]: Path(sys.executable)}
    for minor in range(OLDEST, NEWEST + 1):
        places = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3.{minor}"))
        if in_path := shutil.which(f"python3.{minor}"):
            places.append(Path(in_path))
        for place in places:
            works = subprocess.run([place, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
            if works:
                found.setdefault(minor, place)
    return list(found.values())


@slow
@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.name)
def test_in_a_clean_environment(
    python: Path, sdist: Path, wheel: Path, engine_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The wheel for this Python, the sdist for others; and a C and a C++ program against what is installed there."""
    run(python, "-m", "venv", tmp_path / "venv")
    pip = (tmp_path / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    try:
        run(*pip, "numpy", "pillow", "safetensors", "tqdm", timeout=900)
    except AssertionError as error:
        pytest.skip(f"no package index: {str(error).strip().splitlines()[-1]}")
    run(*pip, wheel if python == Path(sys.executable) else sdist, timeout=1800)
    image, _ = synthetic.micrograph(5, 200, 300)
    expected = pretrained_engine(device="cpu", precision="float32").segment(image).tobytes()
    command = [tmp_path / "venv" / "bin" / "python", "-c", AT_WORK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == expected
    folder = run(tmp_path / "venv" / "bin" / "unet-fast", "--cmake-dir").strip()
    assert folder.startswith(str(tmp_path))
    configure(ROOT / "tests" / "consumer", tmp_path / "consumer", f"-Dunet_fast_DIR={folder}")
    run(tool("cmake"), "--build", tmp_path / "consumer")
    masks = [run_bytes(tmp_path / "consumer" / f"{name}_unet_fast", engine_file("plain")) for name in ("c", "cpp")]
    y, x = np.mgrid[:40, :50]
    expected = Engine(engine_file("plain"), device="cpu").segment((5 * y + 3 * x).astype(np.uint8)).tobytes()
    assert masks == [expected, expected]
