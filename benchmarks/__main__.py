"""``python -m benchmarks``: run some or all benchmarks, print their tables."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import (
    adapting,
    data_path,
    distilling,
    duplicates,
    finetuning,
    handwriting,
    imbalance,
    precision,
    reading,
    remote,
    robustness,
    searching,
    serving,
    small_data,
    startup,
    training,
)
from benchmarks.harness import Options, as_json, machine
from datamodules.errors import exit_status
from datamodules.images import check_folder
from datamodules.writing import atomic_write, check_output

BENCHES = {
    "training": training.same_work,
    "goal": training.same_goal,
    "finetuning": finetuning.run,
    "precision": precision.run,
    "data": data_path.run,
    "handwriting": handwriting.run,
    "reading": reading.run,
    "small": small_data.run,
    "imbalance": imbalance.run,
    "robustness": robustness.run,
    "distilling": distilling.run,
    "adapt": adapting.run,
    "retrieval": searching.run,
    "duplicates": duplicates.run,
    "startup": startup.run,
    "page": serving.run,
    "remote": remote.run,
}


def main(args: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)} (all)")
    parser.add_argument("--data-root", type=Path, help="folder with data/ and weights/ (else the embedded digits)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="only show that everything runs, on drawn data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    given = parser.parse_args(args)
    unknown = set(given.names) - set(BENCHES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    if min(given.repeats, given.threads) < 1:
        parser.error("--repeats and --threads must be at least 1")
    return exit_status(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    if given.json is not None:
        check_output(given.json)
    if given.data_root is not None:
        check_folder(given.data_root)
    root = None if given.data_root is None else given.data_root.resolve()
    options = Options(root, 1 if given.smoke else given.repeats, given.threads, given.smoke)
    print(json.dumps(machine()))
    measurements = []
    for name in given.names or BENCHES:
        for measurement in BENCHES[name](options):
            measurements.append(measurement)
            print(measurement.table(), flush=True)
        if given.json is not None:  # by now: the next one may take hours
            with atomic_write(given.json, "w", encoding="utf-8") as file:
                file.write(as_json(options, measurements) + "\n")


if __name__ == "__main__":
    sys.exit(main())
