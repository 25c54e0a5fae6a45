"""What runs of `pytest bench/` stored: a document of pytest-benchmark, read as rows, and several of them made one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import guard

#: Rows of more samples than this keep their quantiles only.
MOST_SAMPLES = 500


class Run:
    """One results.json.  `rows`: what each test stored, by the name of its row, with its `seconds`."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = stored["machine_info"]
        commits = stored["commit_info"].get("id", "unknown").split(", ")
        self.commit: str = ", ".join(commit[:12] for commit in commits)
        if stored["commit_info"].get("dirty"):
            self.commit += " with local changes"
        self.date: str = stored["datetime"][:10]
        self.rows: dict[str, dict[str, Any]] = {}
        for benchmark in stored["benchmarks"]:
            extra = benchmark["extra_info"]
            if "row" in extra:
                self.rows[extra["row"]] = {"seconds": benchmark["stats"].get("data", []), **extra}

    @classmethod
    def load(cls, path: Path) -> Run:
        return cls(json.loads(path.read_text()))

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """The rows whose name begins with `kind`/, by the rest of the name."""
        return {name.removeprefix(f"{kind}/"): row for name, row in self.rows.items() if name.startswith(f"{kind}/")}

    def ratios(self) -> dict[str, list[float]]:
        """What the guard compares, of the rows that say enough for that."""
        threads = self.machine["ceilings"]["threads"]
        found = {
            name: guard.ratios(row["seconds"], guard.Reference(**row["reference"]), threads)
            for name, row in self.rows.items()
            if row["seconds"] and "reference" in row
        }
        return {name: left for name, left in found.items() if not guard.unfit(len(self.rows[name]["seconds"]), left)}

    def peak(self, device: str, precision: str) -> float | None:
        """Operations per second that the device reached at most in `precision`; None where that was not measured."""
        rate: float | None = self._ceilings(device).get("operations_per_s", {}).get(precision)
        return rate

    def bandwidth(self, device: str) -> float | None:
        """Bytes per second that the device reached at most."""
        rate: float | None = self._ceilings(device).get("bytes_per_s")
        return rate

    def _ceilings(self, device: str) -> dict[str, Any]:
        found: dict[str, Any] = self.machine["gpu_ceilings" if device.startswith("cuda") else "ceilings"]
        return found

    def heading(self) -> str:
        """Hardware, versions, ceilings, load, commit and command: one paragraph."""
        about, on_cpu, on_gpu = self.machine, self.machine["ceilings"], self.machine["gpu_ceilings"]
        versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
        hardware = ", ".join(
            filter(None, [about["gpu"], f"{about['cpu']} ({about['cores']} cores; {about['caches']})"])
        )
        ceilings = f"Measured ceilings: {_rates(on_cpu)} on {on_cpu['threads']} threads"
        if on_gpu:
            ceilings += f"; {_rates(on_gpu)} on the GPU"
        return (
            f"{hardware}, {about['memory_gb']} GB, {about['system']}, Python {about['python']}; {versions}. "
            f"{ceilings}. Load of the machine at the start: {about['load'][0]:g}. {self.date}, commit {self.commit}, "
            f"`{about['command']}`."
        )


def _rates(ceilings: dict[str, Any]) -> str:
    rates = [f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings["operations_per_s"].items()]
    return ", ".join([*rates, f"{ceilings['bytes_per_s'] / 1e9:,.1f} GB/s"])


def slim(stored: dict[str, Any]) -> None:
    """Takes from pytest-benchmark's document what nobody reads: digits below the noise, and thousands of samples."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

    for benchmark in stored["benchmarks"]:
        if len(benchmark["stats"].get("data", [])) > MOST_SAMPLES:
            del benchmark["stats"]["data"]
    stored["benchmarks"] = rounded(stored["benchmarks"])


def merged(documents: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """Documents of one machine, measured one after the other, as one that `command` made.

    Ceilings are the highest of any document, and so is the load.  Where pieces were measured again at a later commit,
    all commits are named.  `ValueError` if machines differ.
    """
    first = documents[0]
    machines = [document["machine_info"] for document in documents]
    classes = sorted({machine["machine_class"] for machine in machines})
    if len(classes) > 1:
        raise ValueError(f"pieces of one run must be of one machine, got {', '.join(classes)}")
    about = {
        **machines[0],
        "command": command,
        "load": max(machine["load"] for machine in machines),
        "ceilings": _highest([machine["ceilings"] for machine in machines]),
        "gpu_ceilings": _highest([machine["gpu_ceilings"] for machine in machines]),
    }
    commits = dict.fromkeys(document["commit_info"].get("id", "unknown") for document in documents)
    dirty = any(document["commit_info"].get("dirty") for document in documents)
    return {
        **first,
        "machine_info": about,
        "commit_info": {**first["commit_info"], "id": ", ".join(commits), "dirty": dirty},
        "benchmarks": [benchmark for document in documents for benchmark in document["benchmarks"]],
    }


def _highest(ceilings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest rate of each kind."""
    if not ceilings[0]:
        return {}
    names = ceilings[0]["operations_per_s"]
    return {
        **ceilings[0],
        "operations_per_s": {name: max(one["operations_per_s"][name] for one in ceilings) for name in names},
        "bytes_per_s": max(one["bytes_per_s"] for one in ceilings),
    }
