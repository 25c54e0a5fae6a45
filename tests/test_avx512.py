"""The kernels for 512-bit vectors on a machine without them: the C++ tests in a PC that Bochs emulates.

`make test-avx512` runs it, in a quarter of an hour; Debian has the tools as bochs, bochsbios, vgabios, grub-pc-bin,
grub-common, xorriso, mtools and cpio, and the Linux as linux-image-amd64."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs import build_library, compile_program, run, tool
from tests.test_int8 import quantised

pytestmark = pytest.mark.slow

PROGRAMS = ("test_winograd", "test_cpu_executor", "test_engines")
#: Of int8, of which the programs above know nothing: name, and whether in Winograd's form.
ENGINES = (("plain", False), ("plain", True), ("rgb", True), ("width24", True))
MINUTES = 40
# Bochs 2.7 reports a size of the vector registers' state that is right without protection keys and compaction only;
# Linux would do without AVX for the others.
LINUX = "console=ttyS0 loglevel=0 nokaslr mitigations=off lpj=1000000 no_timer_check clearcpuid=pku,ospke,xsavec,xsaves"
MACHINE = """
cpu: model=corei7_skylake_x, ips=100000000
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={folder}/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/said.txt
display_library: rfb, options="timeout=0"
sound: driver=dummy
speaker: enabled=0
plugin_ctrl: unmapped=0, speaker=0, extfpuirq=0, parallel=0
log: {folder}/bochs.log
panic: action=fatal
"""


def linux() -> Path:
    """The kernel to start: the file that UNET_FAST_LINUX names, or the last one below /boot."""
    given = os.environ.get("UNET_FAST_LINUX")
    found = [Path(given)] if given else sorted(Path("/boot").glob("vmlinuz-*"))
    if not found:
        pytest.skip("needs a Linux kernel in /boot, or its name in UNET_FAST_LINUX")
    return found[-1]


def disc(folder: Path) -> None:
    """disc.iso: Linux, which runs tests/c/first_process.c and, by that, the test programs."""
    options = ("-DCMAKE_EXE_LINKER_FLAGS=-static", "-DUF_STATIC=ON")
    build = build_library(ROOT / "build" / "static-tests", *options, targets=(*PROGRAMS[:2], "unet_fast_static"))
    # It opens no library, so what the linker says of those that a static program cannot open does not matter.
    compile_program(
        build / "test_engines", ROOT / "tests" / "cpp" / "test_engines.cpp", library=build, flags=("-O1", "-static")
    )
    files, boot = folder / "files", folder / "disc" / "boot"
    (files / "dev").mkdir(parents=True)
    (boot / "grub").mkdir(parents=True)
    run(tool("cc"), "-static", "-O1", ROOT / "tests" / "c" / "first_process.c", "-o", files / "init")
    for program in PROGRAMS:
        run(tool("strip"), build / program, "-o", files / program)
    engines = [f"{name}{'-winograd' if winograd else ''}.unet" for name, winograd in ENGINES]
    for file, (name, winograd) in zip(engines, ENGINES, strict=True):
        (files / file).write_bytes(quantised(name, winograd=winograd))
    names = "\n".join(["dev", "init", *PROGRAMS, *engines])
    archive = subprocess.run(
        [tool("cpio"), "--create", "--format=newc"], input=names.encode(), cwd=files, capture_output=True, check=True
    )
    (boot / "files").write_bytes(archive.stdout)
    (boot / "linux").write_bytes(linux().read_bytes())
    menu = f"set timeout=0\nmenuentry tests {{\nlinux /boot/linux {LINUX}\ninitrd /boot/files\n}}\n"
    (boot / "grub" / "grub.cfg").write_text(menu)
    run(tool("grub-mkrescue"), "-o", folder / "disc.iso", folder / "disc")


def test_with_512_bits(tmp_path: Path) -> None:
    """Every op and every tile on avx512, as on the other instruction sets."""
    bochs = tool("bochs")
    disc(tmp_path)
    (tmp_path / "bochsrc").write_text(MACHINE.format(folder=tmp_path))
    (tmp_path / "debugger").write_text("c\n")  # Debian's Bochs begins in its debugger: continue
    command = [bochs, "-q", "-f", str(tmp_path / "bochsrc"), "-rc", str(tmp_path / "debugger")]
    with open(tmp_path / "screen.txt", "w") as screen:
        # Until the emulated machine is switched off.
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=screen, stderr=screen, timeout=60 * MINUTES)
    said = tmp_path / "said.txt"
    text = said.read_text(errors="replace") if said.exists() else "Linux said nothing"
    for program in PROGRAMS:
        assert f"first process: {program} gives 0" in text, text[-4000:]
    assert len(re.findall(r"passed: \d+ runs on avx512 ", text)) == len(PROGRAMS), text[-4000:]
