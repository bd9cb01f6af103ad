"""Plants small bugs in a copy of the package, one at a time, and reports those that no test
notices.

python tests/mutation/mutate.py --count 60 --seed 1 [--only models/ optim/] [--jobs 2]

The bugs are of the kinds that people make by hand: a swapped axis, an off-by-one, an inverted
ratio, `>` for `>=`, a sign, a constant ten times too large, a missing `detach`. Each is planted in
a copy of the source; the tests that mirror the changed file's folder run on it, and if they pass,
those of the whole package above it. Not part of the ordinary tests: 60 bugs take about half an
hour on two cores. A survivor is a bug to look at: some change nothing that matters.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path("src/sightline")
TIMEOUT = 900  # seconds for the tests of one bug; one that hangs counts as noticed

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
}
SWAPPED_NAMES = {
    "height": "width",
    "width": "height",
    "row": "column",
    "column": "row",
    "rows": "columns",
    "columns": "rows",
    "mean": "std",
    "std": "mean",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "floor": "ceil",
    "ceil": "floor",
}


@dataclass(frozen=True)
class Bug:
    """One change of one file."""

    file: str
    line: int
    before: str
    after: str
    source: str  # of the whole file with the bug

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n    - {self.before}\n    + {self.after}"


def mutate_node(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Small bugs in place of one node: each the node that stands instead, and the kind."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield (
            ast.Compare(
                node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators
            ),
            "comparison",
        )
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not is_text(node):
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right), "operator"
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.Sub)):
        yield ast.BinOp(node.right, node.op, node.left), "swapped operands"
    if isinstance(node, ast.Name) and node.id in SWAPPED_NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Name(SWAPPED_NAMES[node.id], node.ctx), "swapped name"
    if (
        isinstance(node, ast.Attribute)
        and node.attr in SWAPPED_NAMES
        and isinstance(node.ctx, ast.Load)
    ):
        yield ast.Attribute(node.value, SWAPPED_NAMES[node.attr], node.ctx), "swapped attribute"
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "detach"
    ):
        yield node.func.value, "missing detach"
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and has_order(node):
        yield ast.Tuple([node.elts[1], node.elts[0]], node.ctx), "swapped pair"
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) <= 3:
        yield ast.Constant(node.value + 1), "off by one"
    if isinstance(node, ast.Constant) and type(node.value) is float:
        yield ast.Constant(node.value * 10), "ten times"
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and not isinstance(node.operand, ast.Constant)
    ):
        yield node.operand, "missing minus"


def is_text(node: ast.BinOp) -> bool:
    """Whether an operation is on text or lists, where another operator would only raise."""
    operands = (node.left, node.right)
    return any(
        isinstance(operand, (ast.JoinedStr, ast.List, ast.Tuple)) for operand in operands
    ) or any(
        isinstance(operand, ast.Constant) and isinstance(operand.value, str) for operand in operands
    )


def has_order(pair: ast.Tuple) -> bool:
    """Whether the order of two things matters: not of dimensions to reduce over, types, equals."""
    if len(pair.elts) != 2 or ast.dump(pair.elts[0]) == ast.dump(pair.elts[1]):
        return False
    are_constants = all(isinstance(item, ast.Constant) for item in pair.elts)
    are_types = all(isinstance(item, ast.Name) and item.id[0].isupper() for item in pair.elts)
    return not are_constants and not are_types


def nodes_in_functions(tree: ast.Module) -> Iterator[ast.expr]:
    """Every expression in a function's body, without annotations, docstrings and messages."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        stack: list[ast.AST] = list(function.body)
        while stack:
            node = stack.pop()
            if isinstance(node, (ast.FunctionDef, ast.Raise, ast.JoinedStr, ast.Assert)):
                continue
            if isinstance(node, ast.ExceptHandler):
                stack += node.body
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                continue
            if isinstance(node, ast.AnnAssign):
                stack += [node.value] if node.value else []
                continue
            if isinstance(node, ast.expr):
                yield node
            stack += ast.iter_child_nodes(node)


def iterate_bugs(file: str) -> Iterator[Bug]:
    """Every small bug that one file could have."""
    text = (ROOT / file).read_text(encoding="utf-8")
    data = text.encode()
    line_starts = [0]
    for line in data.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))
    for node in nodes_in_functions(ast.parse(text)):
        for replacement, _ in mutate_node(node):
            start = line_starts[node.lineno - 1] + node.col_offset
            end = line_starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            changed = ast.unparse(ast.fix_missing_locations(replacement))
            if isinstance(replacement, (ast.BinOp, ast.Compare)):
                changed = f"({changed})"
            buggy = (data[:start] + changed.encode() + data[end:]).decode()
            before = " ".join(data[start:end].decode().split())
            yield Bug(file, node.lineno, before, changed, buggy)


def choose_bugs(count: int, seed: int, only: list[str]) -> list[Bug]:
    """`count` bugs, as many from each folder as can be, each in a file and line of its own."""
    generator = random.Random(seed)
    by_folder: dict[str, list[str]] = {}
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if only and not any(part in file for part in only):
            continue
        by_folder.setdefault(str(Path(file).parent), []).append(file)
    chosen: list[Bug] = []
    lines: set[tuple[str, int]] = set()
    folders = sorted(by_folder)
    for attempt in range(100 * count):
        if len(chosen) == count:
            break
        folder = folders[attempt % len(folders)]
        bugs = list(iterate_bugs(generator.choice(by_folder[folder])))
        if not bugs:
            continue
        bug = generator.choice(bugs)
        if (bug.file, bug.line) not in lines:
            lines.add((bug.file, bug.line))
            chosen.append(bug)
    return chosen


def tests_for(file: str) -> list[list[str]]:
    """Folders of tests to run on a bug in `file`, the nearest first."""
    folder = Path(file).relative_to(SOURCE).parent
    nearest = Path("tests") / folder / f"test_{Path(file).name}"
    package = folder.parts[0] if folder.parts else "."
    steps = [
        [str(nearest)],
        [f"tests/{folder}"],
        [f"tests/{package}", "tests/contract", "tests/app"],
    ]
    return [step for step in steps if (ROOT / step[0]).exists()]


def is_noticed(bug: Bug) -> bool:
    """Whether a test fails on a copy of the project with the bug."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests", "gallery", "docs", "bench"):
            shutil.copytree(
                ROOT / part,
                copy / part,
                ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.jpg")
                if part == "docs"
                else None,
            )
        for name in ("pyproject.toml", "README.md", "LEDGER.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, copy / name)
        (copy / bug.file).write_text(bug.source, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
        data = ROOT.parent / "shared" / "data"
        environment.setdefault("SIGHTLINE_DATA", str(data))
        for tests in tests_for(bug.file):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
            try:
                done = subprocess.run(
                    command,
                    cwd=copy,
                    env=environment,
                    capture_output=True,
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return True
            if done.returncode not in (0, 5):
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of file names")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    bugs = choose_bugs(options.count, options.seed, options.only)
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for bug, noticed in zip(bugs, pool.map(is_noticed, bugs), strict=True):
            survivors += not noticed
            print("noticed " if noticed else "SURVIVED", bug, flush=True)
    print(f"{survivors} of {len(bugs)} bugs survived")


if __name__ == "__main__":
    main()
