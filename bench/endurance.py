"""Hours of damaged input and kills, by hand: what is refused, what is right, and what is neither.

`python bench/endurance.py [PART ...] [--count PART=N ...] [--seconds 3600] [--limit 60]
[--out out/endurance]` runs the cases of each part in a forked worker, so that torch is imported
once, and prints one table. Each case has a number and draws its chances from it, and its outcome is
appended to `PART.jsonl`: run again, the command goes on after the last case. Tracebacks are there
in full, hangs with the number of their case. `--only NUMBER` runs one case here and shows what it
does.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from endurance_cases import Formulas, Images, Recipes, Stores
from endurance_commands import CommandLines, Crowds
from endurance_kills import ScanKills, TrainingKills
from endurance_server import Requests

PARTS: Mapping[str, Any] = {
    "images": Images,
    "formulas": Formulas,
    "recipes": Recipes,
    "stores": Stores,
    "commands": CommandLines,
    "crowds": Crowds,
    "trainings": TrainingKills,
    "scans": ScanKills,
    "server": Requests,
}
DESCRIPTIONS = {
    "images": "mutated images, six formats",
    "formulas": "mutated formulas",
    "recipes": "mutated recipes, five methods",
    "stores": "damaged stores, six kinds of damage",
    "commands": "command lines from the declared parameters",
    "crowds": "four `neighbors` at once, with and without a store",
    "trainings": "trainings killed and resumed",
    "scans": "scans killed and resumed",
    "server": "requests to an explorer that a visitor reads, for an hour",
}
COUNTS = {
    "images": 10_000,
    "formulas": 2_000,
    "recipes": 1_000,
    "stores": 600,
    "commands": 2_000,
    "crowds": 10,
    "trainings": 100,
    "scans": 200,
    # More than an hour's: `--seconds` ends this part.
    "server": 10_000_000,
}

# Until a worker has made what its cases need.
PREPARATION_SECONDS = 300.0

Record = dict[str, Any]


def run_case(part: Any, name: str, number: int) -> Record:
    """One case and how it ended; an exception is what a user would have seen as a traceback."""
    chance = random.Random(f"{name} {number}")
    try:
        outcome = asdict(part.run(number, chance))
    except Exception:  # noqa: BLE001 - whatever comes is what is looked for
        outcome = {"kind": "traceback", "detail": traceback.format_exc(), "lost_bytes": 0}
    return {"number": number, **outcome}


def work_cases(name: str, first: int, count: int, folder: Path, descriptor: int) -> None:
    """The worker: writes a line when it is prepared, and one for each case."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    part = PARTS[name](folder.absolute())
    os.write(descriptor, b"{}\n")
    for number in range(first, count):
        record = run_case(part, name, number)
        os.write(descriptor, json.dumps(record).encode() + b"\n")


def start_worker(name: str, first: int, count: int, folder: Path) -> tuple[int, int]:
    """Forks a worker in a process group of its own. Returns its id, and where its lines come."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.setsid()
        os.close(reader)
        work_cases(name, first, count, folder, writer)
        status = 0
    except BaseException:  # noqa: BLE001 - a child of a fork must end here, whatever happens
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def read_records(
    name: str, first: int, count: int, folder: Path, limit: float
) -> Iterator[Record | None]:
    """The records of a worker in order; None where a case takes longer than `limit` seconds.

    Nothing comes after that, and the worker is killed with all that it started.
    """
    child, reader = start_worker(name, first, count, folder)
    pending = b""
    seconds = PREPARATION_SECONDS
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], seconds)
            if not ready:
                yield None
                return
            data = os.read(reader, 1 << 20)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if record := json.loads(line):
                    yield record
            seconds = limit
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def run_part(name: str, count: int, out: Path, seconds: float, limit: float) -> None:
    """Runs the cases of a part that are not yet in its file, for so many seconds at most."""
    path = out / f"{name}.jsonl"
    end = time.monotonic() + seconds
    while (first := len(read_results(path))) < count and time.monotonic() < end:
        with path.open("a", encoding="utf-8") as file:
            record: Record | None = {}
            for record in read_records(name, first, count, out / f"{name} work", limit):
                if record is None:
                    break
                file.write(json.dumps(record) + "\n")
                file.flush()
                first += 1
                if record["kind"] in ("traceback", "wrong"):
                    last_line = record["detail"].strip().splitlines()[-1]
                    print(f"{name} {record['number']}: {record['kind']} {last_line}", flush=True)
                if time.monotonic() > end:
                    return
            if first < count:  # the worker hung, or died, in this case
                kind = "hang" if record is None else "died"
                print(f"{name} {first}: {kind}", flush=True)
                file.write(json.dumps({"number": first, "kind": kind, "detail": ""}) + "\n")
    shutil.rmtree(out / f"{name} work", ignore_errors=True)


def read_results(path: Path) -> list[Record]:
    """The records written so far, without a last line that was cut."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def print_table(out: Path) -> None:
    """One row a part, as Markdown."""
    columns = "refused cleanly | right | wrong unnoticed | tracebacks | hangs | bytes lost"
    print(f"| what | how many | {columns} |\n|---|---|---|---|---|---|---|---|")
    for name, description in DESCRIPTIONS.items():
        records = read_results(out / f"{name}.jsonl")
        if not records:
            continue
        kinds = Counter(record["kind"] for record in records)
        lost = sum(record.get("lost_bytes", 0) for record in records)
        numbers = [
            len(records),
            kinds["refused"],
            kinds["right"],
            kinds["wrong"],
            kinds["traceback"] + kinds["died"],
            kinds["hang"],
            lost,
        ]
        print(f"| {description} | " + " | ".join(f"{number:,}" for number in numbers) + " |")


def parse_count(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"no part {name}; choose from {', '.join(PARTS)}")
    return name, int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--count", type=parse_count, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each part at most")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds until a case hangs")
    parser.add_argument("--out", type=Path, default=Path("out/endurance"))
    parser.add_argument("--only", type=int, help="the number of one case")
    options = parser.parse_args()
    torch.set_num_threads(1)  # forked workers can't use threads that were started before
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    counts = {**COUNTS, **dict(options.count)}
    if options.only is not None:
        [name] = options.parts
        folder = out / "one case"
        folder.mkdir(exist_ok=True)
        print(run_case(PARTS[name](folder), name, options.only)["detail"])
        return
    for name in options.parts:
        run_part(name, counts[name], out, options.seconds, options.limit)
    print_table(out)


if __name__ == "__main__":
    main()
