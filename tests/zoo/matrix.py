"""Runs every method on every network of the catalogue, and writes down what works with what.

    python tests/zoo/matrix.py --out FOLDER [--only 'timm/*'] [--methods saliency guided]
    python tests/zoo/matrix.py --out FOLDER --table

Each network has a process of its own, so that one that hangs or dies takes nothing with it. The log
FOLDER/cells.jsonl has one line for each cell; a second run does what is missing in it, and
`--again` also does what was neither ok nor refused. `--table` writes docs/compatibility.md from
the log. Not part of the ordinary tests: the whole takes hours on one core. Ends with 1 where a cell
is neither ok nor refused.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402 - after the path
from zoo.cells import LOADING, Cell, run_network  # noqa: E402
from zoo.networks import ZooNetwork, list_networks  # noqa: E402
from zoo.quick_runs import make_folder  # noqa: E402
from zoo.table import write_table  # noqa: E402

from sightline.methods import TOPICS, load_methods  # noqa: E402

LOG = "cells.jsonl"
TABLE = ROOT / "docs" / "compatibility.md"
# What each process would import for itself, which takes longer than its methods. Not lancedb, which
# starts threads.
PRELOADED = [
    "zoo.cells",
    "cv2",
    "jinja2",
    "lance_namespace",
    "matplotlib.figure",
    "matplotlib.pyplot",
    "pandas",
    "pyarrow.dataset",
    "pydantic",
    "scipy.optimize",
    "skimage.metrics",
    "sklearn.decomposition",
    "timm",
    "torchvision",
]
CELL_LIMIT = 180  # seconds; a method that takes longer on so small a network hangs
DONE = ("ok", "refused")


def read_log(path: Path) -> dict[tuple[str, str], Cell]:
    """The cells of a log by network and method; of two of the same the later."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = [Cell(**json.loads(line)) for line in lines]
    return {(cell.network, cell.method): cell for cell in cells}


def send_cells(connection: Connection, network_name: str, method_names: list[str]) -> None:
    """In a process of its own: runs the methods on the network and sends each cell."""
    torch.set_num_threads(1)
    methods = {name: method for name, method in load_methods().items() if name in method_names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        pictures = make_folder(Path(folder) / "pictures")
        for cell in run_network(list_networks()[network_name], methods, pictures):
            connection.send(cell)


def choose_context() -> BaseContext:
    """How processes start: forks of one that has imported the libraries, where there is fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    topics = [f"sightline.methods.{topic}" for topic in TOPICS]
    context.set_forkserver_preload([*PRELOADED, *topics])
    return context


def run_apart(entry: ZooNetwork, method_names: list[str], limit: float) -> Iterator[Cell]:
    """The cells of a network, run in processes of their own.

    After a cell that hangs or takes its process down another process goes on behind it.
    """
    remaining = [LOADING, *method_names]
    while remaining:
        context = choose_context()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_cells, args=(sender, entry.name, remaining))
        process.start()
        sender.close()
        last: Cell | None = None
        try:
            while receiver.poll(limit):
                last = receiver.recv()
                if last.method in remaining:
                    remaining.remove(last.method)
                    yield last
            ending = "hang"
        except EOFError:
            ending = "crash"
        finally:
            process.kill()
            process.join()
        is_loaded = last is not None and (last.method != LOADING or last.outcome == "ok")
        if not remaining or (last is not None and not is_loaded):
            return
        reason = f"over {limit:.0f} s" if ending == "hang" else f"exit code {process.exitcode}"
        yield Cell(entry.name, remaining.pop(0), ending, reason)
        if not is_loaded:
            return


def choose_methods(entry: ZooNetwork, names: list[str], share: float) -> list[str]:
    """All of the methods, or a seeded share of them that differs between networks."""
    count = max(1, round(share * len(names)))
    chosen = random.Random(entry.name).sample(names, count)
    return [name for name in names if name in chosen]


def list_missing(
    names: list[str], entry: ZooNetwork, log: Mapping[tuple[str, str], Cell], again: bool
) -> list[str]:
    """The methods whose cell has not been run, or came to no good where it is to run again."""
    loading = log.get((entry.name, LOADING))
    if loading is not None and loading.outcome != "ok":
        is_to_run = again and loading.outcome not in DONE
        return names if is_to_run else []
    missing: list[str] = []
    for name in names:
        cell = log.get((entry.name, name))
        if cell is None or (again and cell.outcome not in DONE):
            missing.append(name)
    return missing


def read_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the log")
    parser.add_argument("--only", default="*", help="pattern of networks: 'timm/*'")
    parser.add_argument("--methods", nargs="*", help="these methods only")
    parser.add_argument("--share", type=float, default=1.0, help="share of the methods, seeded")
    parser.add_argument("--limit", type=float, default=CELL_LIMIT, help="seconds for one cell")
    parser.add_argument("--again", action="store_true", help="also those that failed")
    parser.add_argument("--table", action="store_true", help=f"only write {TABLE.name}")
    return parser.parse_args()


def main() -> int:
    """Runs what is missing, or writes the table."""
    arguments = read_arguments()
    path = arguments.out / LOG
    log = read_log(path)
    if arguments.table:
        TABLE.write_text(write_table(list(log.values())), encoding="utf-8")
        return 0
    names = [name for name in load_methods() if name in (arguments.methods or [name])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    is_good = True
    for entry in list_networks().values():
        if not fnmatch(entry.name, arguments.only):
            continue
        chosen = choose_methods(entry, names, arguments.share)
        missing = list_missing(chosen, entry, log, arguments.again)
        if not missing:
            continue
        for cell in run_apart(entry, missing, arguments.limit):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
            is_good = is_good and cell.outcome in DONE
            if cell.outcome not in DONE or cell.method == LOADING:
                line = " ".join((cell.network, cell.method, cell.outcome, cell.reason))
                print(line, flush=True)  # noqa: T201 - a script
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
