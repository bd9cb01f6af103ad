"""Several commands at once on one machine: how much longer each takes than one alone.

    python bench/together.py

Runs `sightline synthesis` 1, 2 and 4 times at once, each as a process of its own: as commands do,
with threads that wait passively, and as torch does it by itself, with threads that keep their
processors busy while they wait. Perfect sharing of P processors makes N runs take N times as long
where one run keeps all processors busy, and max(1, N / P) times where it keeps one busy.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

# Programs that run the words behind them as a command. torch reads how threads wait when it is
# imported, which the second does before the command could choose.
PROGRAMS = {
    "passive": ["-m", "sightline"],
    "torch's": [
        "-c",
        "import sys, torch; from sightline.app.cli.main import main; sys.exit(main(sys.argv[1:]))",
    ],
}


def main() -> None:
    """Measures every policy with every number of runs, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds for the runs of one cell"
    )
    given = parser.parse_args()

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} processors"
    )
    for waiting in PROGRAMS:
        alone = None
        for count in given.counts:
            times = [
                measure_runs(waiting, count, given.steps, given.limit) for _ in range(given.rounds)
            ]
            seconds = statistics.median(times)
            alone = alone or seconds
            is_cut = max(times) >= given.limit
            mark = "more than " if is_cut else ""
            ratio = seconds / alone
            print(f"{waiting:<8} {count} at once: {mark}{seconds:6.1f} s, {mark}{ratio:4.2f} ×")


def measure_runs(waiting: str, count: int, steps: int, limit: float) -> float:
    """Seconds until the last of several commands that start together has ended, or the limit."""
    environment = dict(os.environ)
    environment.pop("OMP_WAIT_POLICY", None)
    words = ["synthesis", "golf ball", "--steps", str(steps), "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runs = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sightline",
                    *words,
                    "--out",
                    str(Path(folder, str(number))),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        for run in runs:
            try:
                run.wait(max(0.1, limit - (time.perf_counter() - start)))
            except subprocess.TimeoutExpired:
                for late in runs:
                    late.kill()
                    late.wait()
                return limit
        if any(run.returncode for run in runs):
            raise SystemExit("a run failed")
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
