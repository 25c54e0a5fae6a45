"""What the tests of trust share.  Each of them is a campaign that runs briefly in `make test` and at length in
`make soak`, which sets UNET_FAST_SOAK to minutes for each part that is bounded by time: 10 for the whole campaign, with
fewer the repetitions of the other parts are fewer in proportion.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.programs import compile_program, run, tool
from tests.trust import figures

SOURCES = Path(__file__).parent


class Campaign:
    """How much of a campaign to run, and what came of it."""

    WHOLE = 10.0
    minutes = float(os.environ.get("UNET_FAST_SOAK", "0"))

    def __init__(self) -> None:
        self.results: list[str] = []

    def count(self, quick: int, full: int) -> int:
        """Repetitions: `full` in a whole soak, a share of them in a shorter one."""
        return max(quick, round(full * min(1.0, self.minutes / self.WHOLE)))

    def seconds(self, quick: float, share: float = 1.0) -> float:
        """Time: that share of the minutes of a part in a soak."""
        return 60 * self.minutes * share if self.minutes else quick

    def record(self, part: str, **values: float) -> None:
        """Figures of a soak: printed at its end, and those of a whole one kept for docs/reliability.md."""
        if self.minutes:
            self.results.append(f"{part}: {figures.shown(values)}")
        if self.minutes >= self.WHOLE:
            figures.record(part, values)


CAMPAIGN = Campaign()


@pytest.fixture(scope="session")
def campaign() -> Campaign:
    return CAMPAIGN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a soak came to."""
    if CAMPAIGN.results:
        terminalreporter.section(f"soak of {CAMPAIGN.minutes:g} minutes a part")
        for result in CAMPAIGN.results:
            terminalreporter.line(result)


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine file of a few dozen weights."""
    path = tmp_path_factory.mktemp("tiny") / "unet.unet"
    path.write_bytes(tiny.engine_bytes("unet"))
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """program(name, library=folder) -> tests/trust/<name>.cpp, compiled with interpose.c against libunet_fast.so."""
    folder = tmp_path_factory.mktemp("trust")

    def build(name: str, library: Path = ROOT / "unet_fast" / "lib") -> Path:
        interpose = folder / "interpose.o"
        if not interpose.exists():
            run(
                tool("cc"),
                "-std=c11",
                "-O1",
                "-g",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-c",
                SOURCES / "interpose.c",
                "-o",
                interpose,
            )
        made = folder / name
        if not made.exists():
            compile_program(
                made, SOURCES / f"{name}.cpp", interpose, library=library, flags=(f"-I{SOURCES.parent / 'c'}", "-ldl")
            )
        return made

    return build


@pytest.fixture(scope="session")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """interpose.c as a library to preload."""
    library = tmp_path_factory.mktemp("interpose") / "interpose.so"
    run(tool("cc"), "-std=c11", "-O1", "-g", "-shared", "-fPIC", SOURCES / "interpose.c", "-o", library, "-ldl")
    return library
