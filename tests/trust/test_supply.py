"""Promise 10: where dependencies come from, what is loaded, and that nothing but data goes in or out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs import tool
from tests.trust import licences

PACKAGE = ROOT / "unet_fast"
LOCK = ROOT / "requirements.lock"
LICENCES = ROOT / "docs" / "licences.md"


def test_every_dependency_is_locked_by_hash() -> None:
    text = LOCK.read_text()
    assert "://" not in text  # pip's own configuration says from where
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert len(entries) == len(licences.locked()) > 20
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[^ ]+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_the_lock_agrees_with_the_constraints() -> None:
    constraints = dict(re.findall(r"^([a-z-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    locked = licences.locked()
    for name, version in constraints.items():
        assert locked[name].split("+")[0] == version, name


def test_every_locked_dependency_has_its_licence_listed() -> None:
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| [^|]+ \| ([^|]+) \|", LICENCES.read_text(), re.MULTILINE))
    assert set(licences.locked()) <= set(listed)
    assert all(licence.strip() for licence in listed.values())


# --- no network ---

# Everything that a user does at run time; each socket that is asked for counts, of Python, C or C++.
WORK = """
import ctypes, sys
interpose = ctypes.CDLL(None)
interpose.interpose_arm(4, ctypes.c_long(0), 0)  # INTERPOSE_NETWORK: only counted
import socket
socket.socket().close()
assert interpose.interpose_counted() == 1, "the counter does not work"
interpose.interpose_arm(4, ctypes.c_long(0), 0)
import numpy as np
import unet_fast
from unet_fast import cli
folder = sys.argv[1]
engine = unet_fast.pretrained_engine(device="cpu")
engine.segment(np.zeros((300, 300), np.uint8))
from PIL import Image
Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder + "/image.png")
spec = unet_fast.UNetSpec(base_width=8, depth=2, tile=16)
from tests.networks import random_weights
unet_fast.freeze((spec, random_weights(spec)), folder + "/a.unet")
for arguments in (["inspect"], ["verify"], ["segment", folder + "/image.png", "-o", folder + "/masks"]):
    assert cli.main([arguments[0], folder + "/a.unet", *arguments[1:]]) == 0
sys.exit(interpose.interpose_counted())
"""


def test_no_network_access(interposer: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LD_PRELOAD": str(interposer),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    ended = subprocess.run([sys.executable, "-c", WORK, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_library_knows_no_network_and_starts_nothing() -> None:
    """What libunet_fast.so takes from the system: no sockets, no programs, no code that is made or mapped."""
    symbols = subprocess.run(
        [tool("nm"), "--dynamic", "--undefined-only", "--format=posix", PACKAGE / "lib" / "libunet_fast.so"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {line.split()[0].split("@")[0] for line in symbols.splitlines()}
    assert "pthread_mutex_lock" in names or "read" in names
    network = ("socket", "connect", "getaddrinfo")
    programs = ("system", "popen", "fork", "vfork", "execv", "execve", "execvp", "posix_spawn", "posix_spawnp")
    for forbidden in (*network, *programs, "mprotect", "mmap", "shm_open"):
        assert forbidden not in names, forbidden
    # The driver is the one thing that is loaded, under a name that stands in the source.
    sources = [path.read_text() for path in (ROOT / "csrc").rglob("*.cpp")]
    assert re.findall(r"dlopen\(([^,]*),", "".join(sources)) == ['"libcuda.so.1"']


# --- no code from a file ---

#: Calls that run what they are given, or unpack objects that may.
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
UNPACKS_CODE = {("pickle", "load"), ("pickle", "loads"), ("marshal", "loads"), ("shelve", "open"), ("np", "load"),
                ("numpy", "load"), ("torch", "load"), ("yaml", "load"), ("os", "system"), ("os", "popen")}  # fmt: skip
#: What compiles kernels, in processes of its own, hears from them by pipe.
TRUSTED = {("worker.py", "pickle", "load"), ("worker.py", "pickle", "loads")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_a_file(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        where = f"{path.name}:{node.lineno}"
        if isinstance(node.func, ast.Name):
            assert node.func.id not in RUNS_CODE, where
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            call = (node.func.value.id, node.func.attr)
            options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            safe = options.get("weights_only") is True or (call[1] == "load" and options.get("allow_pickle") is False)
            assert call not in UNPACKS_CODE or safe or (path.name, *call) in TRUSTED, where
            assert options.get("shell") is not True, where
