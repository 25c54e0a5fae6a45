"""Promise 9: a process that is killed while it writes never leaves a broken file under the final name.

Killed at each call of the system that changes a file, in the middle of each write, and at random moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.fake_gpu import FakeMachine
from tests.trust.conftest import Campaign
from unet_fast import Engine
from unet_fast.tune import Tuning

# A process that forks a child for every number it reads.  The child does the work and is killed at that call, or works
# on until it is killed from outside where the number is -1.  Its process number is printed, then how it ended.
SERVER = """
import ctypes, os, sys
from pathlib import Path
from tests.trust import interrupted_work
work, folder = sys.argv[1], Path(sys.argv[2])
interpose = ctypes.CDLL(None)
interrupted_work.prepare(work, folder)
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    child = os.fork()
    if child == 0:
        if number > 0:
            interpose.interpose_arm(3, ctypes.c_long(number), 4)  # INTERPOSE_WRITE, INTERPOSE_KILL
        interrupted_work.do(work, folder)
        while number < 0:
            interrupted_work.do(work, folder)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """The process above."""

    def __init__(self, work: str, folder: Path, interposer: Path, driver: str) -> None:
        self.work, self.folder = work, folder
        environment = {"LD_PRELOAD": str(interposer), "LD_LIBRARY_PATH": driver, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, work, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | environment,
        )  # fmt: skip
        assert self._say() == "ready"
        assert not self.run()  # an older result is there from the start

    def check(self) -> None:
        """What stands under the final names is whole."""
        WHOLE[self.work](self.folder)

    def _say(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, number: int = 0, after: float = 0.0) -> bool:
        """Does the work in a child that is killed at that call, or from outside after some seconds where the number is
        -1; whether it was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        child = int(self._say())
        if number < 0:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        ended = int(self._say())
        assert ended in (0, -signal.SIGKILL)
        return ended != 0

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _engine_is_whole(folder: Path) -> None:
    Engine(folder / "unet.unet", device="cpu", threads=1)


def _masks_are_whole(folder: Path) -> None:
    masks = [path for path in (folder / "masks").rglob("*.*") if not path.name.startswith(".")]
    assert masks
    for path in masks:
        with Image.open(path) as mask:
            assert np.asarray(mask).shape == (40, 40)


def _tuning_is_whole(folder: Path) -> None:
    assert Tuning.read(folder / "tuning.json").steps


WHOLE = {"freeze": _engine_is_whole, "segment": _masks_are_whole, "tune": _tuning_is_whole}


@pytest.fixture(params=["freeze", "segment", "tune"])
def server(request: pytest.FixtureRequest, interposer: Path, tmp_path: Path) -> Iterator[Server]:
    machine: FakeMachine | None = request.getfixturevalue("machine") if request.param == "tune" else None
    server = Server(request.param, tmp_path, interposer, machine.folder if machine else "")
    yield server
    server.close()


def test_killed_at_every_call_that_writes(server: Server) -> None:
    server.check()
    number = 1
    while server.run(number):
        server.check()
        number += 1
    assert number > 4  # open, write, fsync, rename at least
    server.check()


def test_killed_at_any_moment(campaign: Campaign, server: Server) -> None:
    chance = random.Random(3)
    kills, end = 0, time.monotonic() + campaign.seconds(1.0, 0.5)
    while time.monotonic() < end:
        server.run(-1, chance.uniform(0, 0.05))
        server.check()
        kills += 1
    assert kills > 5
    campaign.record(f"kill -9 of {server.work}", kills=kills)
