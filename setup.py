"""Builds the native runtime with CMake and puts it into the package; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PRETRAINED = ROOT / "pretrained" / "relunet16_micrographs.safetensors"


def version() -> str:
    """The version in the C header, the one place where it stands."""
    header = (ROOT / "csrc" / "include" / "unet_fast.h").read_text()
    return ".".join(re.findall(r"^#define UF_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.MULTILINE))


def cmake_prefixes() -> str:
    """Where pip put the build requirements that have a CMake configuration."""
    prefixes = []
    for name in ("pybind11", "nlohmann_json"):
        try:
            module = __import__(name)
        except ImportError:  # then the system's own, such as Debian's nlohmann-json3-dev
            continue
        prefixes.append(str(Path(next(iter(module.__path__)))))
    return ";".join(prefixes)


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package folder."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("UNET_FAST_BUILD_DIR") or ROOT / "build" / f"cmake-{sys.implementation.cache_tag}")
        build.mkdir(parents=True, exist_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_PREFIX_PATH={cmake_prefixes()}",
            f"-DCMAKE_INSTALL_PREFIX={package}",
            "-DCMAKE_INSTALL_LIBDIR=lib",
            "-DUF_PYTHON=ON",
            "-DUF_STATIC=OFF",
            *os.environ.get("UNET_FAST_CMAKE_ARGS", "").split(),
        ]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *generator, *arguments], check=True)
        jobs = str(len(os.sched_getaffinity(0)))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", str(build), "--strip"], check=True)
        if PRETRAINED.exists():
            data = package / "data"
            data.mkdir(exist_ok=True)
            shutil.copyfile(PRETRAINED, data / PRETRAINED.name)
        if self.editable_mode:
            self.copy_library_to_source()

    def copy_extensions_to_source(self) -> None:
        """For `build_ext --inplace`."""
        super().copy_extensions_to_source()
        self.copy_library_to_source()

    def copy_library_to_source(self) -> None:
        """What belongs to the module, which is all that setuptools copies to the source tree."""
        for folder in ("lib", "include", "data"):
            shutil.rmtree(ROOT / "unet_fast" / folder, ignore_errors=True)
            shutil.copytree(Path(self.build_lib) / "unet_fast" / folder, ROOT / "unet_fast" / folder, symlinks=True)


setup(version=version(), ext_modules=[Extension("unet_fast._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
