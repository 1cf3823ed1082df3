"""Run contestants in turn, and say how they compare."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy", "tensorflow", "tensorflow-cpu", "keras", "faiss-cpu")


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        data: Folder with ``data/`` and ``weights/``, as the benchmarks' page says; None takes the embedded digits.
        repeats: Turns of each contestant.
        threads: Of each contestant.
        smoke: Only show that everything runs.
    """

    data: Path | None
    repeats: int
    threads: int
    smoke: bool


@dataclass
class Measurement:
    """One figure of all contestants.

    Attributes:
        name: What was measured.
        unit: Its unit.
        values: By contestant, a value for each turn.
        note: What a reader must know.
    """

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def table(self) -> str:
        """Medians with their range and, against ``ours``, the ratio turn by turn."""
        lines = [f"{self.name} ({self.unit}){': ' + self.note if self.note else ''}"]
        width = max(map(len, self.values), default=0)
        for name, values in self.values.items():
            line = f"  {name:<{width}}  {_spread(values)}"
            if name != "ours" and "ours" in self.values:
                ratios = [ours / other for ours, other in zip(self.values["ours"], values, strict=False) if other]
                line += f"   ours / it: {_spread(ratios)}" if ratios else ""
            lines.append(line)
        return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def in_turn(measurement: Measurement, contestants: Mapping[str, Callable[[], float]], repeats: int) -> Measurement:
    """Measure A, B, A, B, …: a drift of the machine's speed then touches all alike."""
    for turn in range(repeats):
        for name, contestant in contestants.items():
            value = contestant()
            measurement.values.setdefault(name, []).append(value)
            say(f"{measurement.name}: {name}, turn {turn + 1} of {repeats}: {value:.4g} {measurement.unit}")
    return measurement


def seconds_of(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after one to warm up."""
    work()
    measured = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        seconds: From start to end.
        peak_mb: Largest resident memory, in MB.
        rows: The JSON objects that it printed or, as ``epochs.jsonl``, wrote.
    """

    seconds: float
    peak_mb: float
    rows: list[dict[str, Any]]


def run_process(args: list[str], threads: int) -> Finished:
    """Run ``python ARGS`` as a user would, and wait for it.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        epochs = Path(scratch) / "epochs.jsonl"
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": f"{threads}",
            "OPENBLAS_NUM_THREADS": f"{threads}",
            "TF_NUM_INTRAOP_THREADS": f"{threads}",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "BENCHMARK_EPOCHS": str(epochs),
            "BENCHMARK_START": repr(time.time()),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each start would compile everything again
        # The command's own output goes to the launcher's stderr, what it took to the launcher's stdout.
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.launch", sys.executable, *args],
            capture_output=True,
            text=True,
            env=environment,
            cwd=scratch,
            check=True,
        )
        took = json.loads(finished.stdout)
        if took["code"] != 0:
            raise RuntimeError(f"{' '.join(args)} failed:\n{finished.stderr[-3000:]}")
        text = finished.stderr + (epochs.read_text() if epochs.exists() else "")
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return Finished(took["seconds"], took["peak_mb"], rows)


def has(package: str, group: str = "bench") -> bool:
    """Whether a contestant is installed; says so, and in which group of dependencies it is, if not."""
    found = find_spec(package) is not None
    if not found:
        say(f"{package} is not installed (uv sync --inexact --group {group}); left out")
    return found


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def as_json(options: Options, measurements: list[Measurement]) -> str:
    """Everything that was measured."""
    said = {"repeats": options.repeats, "threads": options.threads}
    return json.dumps({"machine": machine(), **said, "measurements": [asdict(m) for m in measurements]}, indent=2)


def say(text: str) -> None:
    """Tell the user where it is."""
    print(text, file=sys.stderr, flush=True)
