"""Options of `pytest bench/`, the row that every test measures, the guard, and the report at the end."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import contestants, guard, machine, report, stored
from bench.timing import rounds_within
from bench.workloads import Network, Networks
from unet_fast import Engine
from unet_fast.bench import SETTLE_BELOW_S, timed_turn
from unet_fast.errors import UnsupportedError
from unet_fast.freeze import Precision


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("unet_fast benchmarks")
    group.addoption("--quick", action="store_true", help="few rows and rounds, under two minutes; times are not judged")
    group.addoption("--threads", type=int, help="CPU threads of everyone (default: one per physical core)")
    group.addoption(
        "--isa",
        choices=["auto", *contestants.LIMITS],
        default="auto",
        help="the most of the CPU's instruction sets that everyone may use; who cannot be limited is left out",
    )
    group.addoption("--save-baseline", metavar="NAME", help="keep this run for --against NAME")
    group.addoption(
        "--against",
        metavar="NAME",
        help=f"baseline to judge by (default: {guard.DEFAULT_BASELINE}, where this class of machine has one)",
    )
    group.addoption(
        "--busy",
        type=float,
        metavar="PART",
        default=guard.BUSY_ABOVE,
        help="rows are judged if others used at most this part of the processors meanwhile (default: %(default)s)",
    )
    group.addoption(
        "--report",
        type=Path,
        metavar="FOLDER",
        default=Path("build/bench"),
        help="where the results go: results.json, results.md, results.html (default: %(default)s)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.benchmark_json is None:
        config.option.report.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = config.option.report / "results.json"
    os.environ.update(contestants.LIMITS.get(config.option.isa, {}))


#: Medians need a few rounds; calls of many seconds average over the noise of the machine themselves.
LEAST_ROUNDS, LEAST_ROUNDS_IF_SLOW, SLOW_ROUND_S = 5, 3, 20.0


class Session:
    """What the rows of one run share."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.quick: bool = config.option.quick
        self.busy_above: float = config.option.busy
        self.isa: str = config.option.isa
        self.networks = Networks(folder)
        self.threads: int = (
            config.option.threads or Engine(self.networks.tiny().engine_file("float32"), device="cpu").threads
        )
        self.ceilings = machine.ceilings(self.threads)
        self.gpu_ceilings = machine.gpu_ceilings() if torch.cuda.is_available() else {}
        self.about = machine.description()
        self.ratios: dict[str, list[float]] = {}
        self.notes: list[str] = []
        self.baseline = self._baseline(config.option.against)

    def _baseline(self, name: str | None) -> guard.Baseline | None:
        if self.quick and name is None:
            self.notes.append("times are not judged: --quick")
            return None
        path = guard.Baseline.path(name or guard.DEFAULT_BASELINE, self.machine_class)
        if path.exists():
            self.notes.append(f"judged by {path}")
            return guard.Baseline.load(path)
        if name is not None:
            raise pytest.UsageError(f"--against {name}: there is no {path}; make one with --save-baseline {name}")
        self.notes.append(f"times are not judged: no baseline for this class of machine ({path.name})")
        return None

    @property
    def machine_class(self) -> str:
        limit = "" if self.isa == "auto" else f"-{self.isa}-only"
        return machine.machine_class(self.about, self.threads) + limit

    def engine(self, network: Network, precision: Precision, device: str = "cpu", **options: Any) -> Engine:
        """The network's engine, with the threads of the session unless `options` say otherwise.

        The test is skipped where this machine has no such device or precision.
        """
        target = machine.gpu_target() if device == "cuda" else ""
        if device == "cuda" and not target:
            pytest.skip("needs an NVIDIA GPU")
        keywords = {"device": device, "precision": precision, "threads": self.threads, "cpu_isa": self.isa, **options}
        try:
            return Engine(network.engine_file(precision, target), **keywords)
        except UnsupportedError as reason:
            pytest.skip(f"{keywords}: {reason}")

    def reference(self, like_seconds: float) -> Callable[[], float]:
        """Seconds of one pass of the reference workload, measured over about as long as `like_seconds`."""
        once = min(machine.native().reference(self.threads) for _ in range(3))
        repeats = max(1, round(min(like_seconds, 0.2) / once))
        return lambda: machine.native().reference(self.threads, repeats)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    request.config.stash[_SESSION] = Session(request.config, tmp_path_factory.mktemp("networks"))
    return request.config.stash[_SESSION]


_SESSION = pytest.StashKey[Session]()


class Row:
    """One measurement: ours in turns with the contestants and the reference workload, recorded and guarded.

    It is taken by `benchmark.pedantic`, whose `setup` runs all others before each timed call of ours.
    """

    def __init__(self, benchmark: Any, session: Session) -> None:
        self._benchmark = benchmark
        self._session = session

    def __call__(
        self,
        name: str,
        call: Callable[[], Any],
        *,
        peers: Sequence[contestants.Contestant] = (),
        seconds: float = 25.0,
        most: int = 200,
        also: Callable[[], Any] | None = None,
        **facts: Any,
    ) -> None:
        """Times `call` in up to `most` rounds of together about `seconds`, in a few where these take longer.

        Each round takes the peers, the reference workload, `also` (which keeps its own time) and `call` in turn.
        `facts` are stored with the row: `flops` and `bytes` of one call, `batch`, `error`, `precision`, `settings`, ...
        """
        usual = {peer.name: peer.seconds for peer in peers}
        ours = _usual_seconds(call)
        reference = self._session.reference(ours / 2)
        references = guard.Reference([], [], [])
        peer_seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}

        def everyone_else() -> None:
            if references.before:
                references.after.append(reference())
            for peer in peers:
                peer_seconds[peer.name].append(timed_turn(peer.run, usual[peer.name]))
            references.alone.append(machine.native().reference(1))
            references.before.append(reference())
            if also is not None:
                also()
            if ours < SETTLE_BELOW_S:
                call()

        round_seconds = ours + sum(2 * one if one < SETTLE_BELOW_S else one for one in (ours, *usual.values()))
        round_seconds += 3 * reference()  # far more than usual where two threads wait for one processor
        least = LEAST_ROUNDS_IF_SLOW if self._session.quick or round_seconds > SLOW_ROUND_S else LEAST_ROUNDS
        others = machine.Others()
        rounds = rounds_within(min(seconds, 2.0) if self._session.quick else seconds, round_seconds, least, most)
        self._benchmark.pedantic(call, setup=everyone_else, rounds=rounds)
        references.after.append(reference())
        if self._benchmark.disabled:
            return
        samples = self._benchmark.stats.stats.data
        self._benchmark.extra_info.update(
            facts,
            row=name,
            reference=asdict(references),
            others_share=others.share(),
            peers={
                peer.name: {"settings": peer.settings, "error": peer.error, "seconds": peer_seconds[peer.name]}
                for peer in peers
            },
        )
        self._judge(name, len(samples), guard.ratios(samples, references, self._session.threads))

    def _judge(self, name: str, rounds: int, ratios: list[float]) -> None:
        session = self._session
        before = session.baseline.rows.get(name) if session.baseline is not None else None
        reason, others = "", self._benchmark.extra_info["others_share"]
        if others > session.busy_above:
            reason = f"others used {others:.0%} of the processors meanwhile"
        else:
            reason = guard.unfit(rounds, ratios, before or ())
        if not reason:
            session.ratios[name] = ratios
        if session.baseline is None or before is None:
            return
        if reason:
            self._benchmark.extra_info["verdict"] = f"not judged: {reason}"
            session.notes.append(f"{name} {self._benchmark.extra_info['verdict']}")
            return
        verdict = guard.compare(before, ratios)
        self._benchmark.extra_info["verdict"] = str(verdict)
        if verdict.outcome == "fails":
            pytest.fail(guard.explanation(name, verdict, session.baseline, session.ratios), pytrace=False)
        if verdict.outcome == "slower":
            session.notes.append(guard.explanation(name, verdict, session.baseline, session.ratios))


def _usual_seconds(call: Callable[[], Any]) -> float:
    """After a call to warm up."""
    call()
    return timed_turn(call, SETTLE_BELOW_S)


@pytest.fixture
def row(benchmark: Any, session: Session) -> Row:
    return Row(benchmark, session)


@pytest.fixture
def peers(session: Session) -> Callable[[contestants.Case], list[contestants.Contestant]]:
    """The contestants that can take part in a case; the others are named, with the reason, at the end of the run."""

    def prepare(case: contestants.Case) -> list[contestants.Contestant]:
        names = contestants.QUICK if session.quick else list(contestants.BUILDERS)
        ready, left_out = contestants.prepare(case, names)
        session.notes += [f"without {name} in {case.precision}: {reason}" for name, reason in left_out.items()]
        return ready

    return prepare


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    session = config.stash.get(_SESSION, None)
    if session is not None:
        command = " ".join(["pytest", *config.invocation_params.args])
        machine_info.clear()  # pytest-benchmark's own has the name of the host
        machine_info.update(
            session.about,
            ceilings=session.ceilings,
            gpu_ceilings=session.gpu_ceilings,
            machine_class=session.machine_class,
            command=command,
        )


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    stored.slim(output_json)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is None:
        return
    terminalreporter.section("unet_fast")
    for note, _ in itertools.groupby(sorted(session.notes)):
        terminalreporter.write_line(note)
    if config.option.save_baseline:
        path = guard.Baseline.path(config.option.save_baseline, session.machine_class)
        guard.Baseline(session.ratios, session.about).save(path)
        terminalreporter.write_line(f"baseline kept: {path}")
    results = Path(config.option.benchmark_json)
    if results.exists():
        for path in report.write(results):
            terminalreporter.write_line(f"report: {path}")
