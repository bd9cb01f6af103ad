"""What works with what, as a page: rows are networks, columns the topics of methods."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from zoo.cells import LOADING, Cell

from sightline.methods import load_methods

INTRODUCTION = """\
# What works with what

Written by `tests/zoo/matrix.py --table`, which ran every method on networks of these architectures,
small and with random weights, and checked that the network, the random generators and the settings
of torch were the same afterwards. Not by hand.

**✓** all methods of the column ran, and their pictures and numbers are sound. **✓ but** all that
ran, without those named, which refuse with one line; the number is that of the reason below.
**—** all of them refuse. **✗** a fault that is known and not mended. An empty cell was not run.
Networks that differ in nothing share a row. Networks made by hand were run with every method, those
of libraries with a seeded sample of them, three in ten: a cell speaks for those of its row that met
it.
"""

FAMILIES = {
    "operation": "Made by hand: operations, precision, wrapping",
    "interface": "Made by hand: inputs and outputs",
    "views": "Made by hand: several views of an image in one batch",
    "state": "Made by hand: hooks, state, odd modules",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
    "open_clip": "open_clip",
}

# A column of its own: it needs a transformer, which most networks are not.
OWN_COLUMNS = ("attention",)
GOOD = ("ok", "refused")
# By the first words of a message, without the names in it, its kind is known.
KEY_WORDS = 4


@dataclass
class Reasons:
    """The reasons of refusals, numbered in the order in which they are met."""

    numbers: dict[str, int] = field(default_factory=dict[str, int])
    examples: list[str] = field(default_factory=list[str])

    def find_number(self, reason: str) -> int:
        """The number of a reason; those that differ in names and numbers only have the same."""
        reason = re.sub(r"'/[^']*'", "FOLDER", reason)
        without_names = re.sub(r"'[^']*'|\([^)]*\)|\b\w*[\dA-Z]\w*\b", "", reason)
        key = " ".join(without_names.split()[:KEY_WORDS])
        if key not in self.numbers:
            self.numbers[key] = len(self.examples) + 1
            self.examples.append(reason)
        return self.numbers[key]


@dataclass
class Row:
    """Networks of which the cells say the same, where they were run; one text for each column."""

    networks: list[str]
    texts: list[str]


def group_methods() -> dict[str, list[str]]:
    """The methods of each column, in the order of the lecture."""
    columns: dict[str, list[str]] = {}
    for method in load_methods().values():
        topic = method.function.__module__.split(".")[2]
        column = method.name if method.name in OWN_COLUMNS else topic
        columns.setdefault(column, []).append(method.name)
    return columns


def write_table(cells: Sequence[Cell]) -> str:
    """The page, as Markdown."""
    by_network: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_network.setdefault(cell.network, {})[cell.method] = cell
    columns = group_methods()
    reasons = Reasons()
    lines = [INTRODUCTION, write_totals(cells), ""]
    for family, title in FAMILIES.items():
        rows: list[Row] = []
        for name, of_network in by_network.items():
            if name.startswith(f"{family}/"):
                texts = [write_cell(of_network, names, reasons) for names in columns.values()]
                join_row(rows, Row([name.removeprefix(f"{family}/")], texts), list(columns))
        if rows:
            lines += [f"## {title}", "", *write_rows(rows, columns), ""]
    lines += ["## Why a method refuses", ""]
    lines += [f"{number}. {text}" for number, text in enumerate(reasons.examples, start=1)]
    return "\n".join(lines) + "\n"


def write_totals(cells: Sequence[Cell]) -> str:
    """How many networks and combinations there are, and what came of them."""
    network_count = len({cell.network for cell in cells})
    runs = [cell for cell in cells if cell.method != LOADING]
    counts = {
        "ran": sum(cell.outcome == "ok" for cell in runs),
        "refused": sum(cell.outcome == "refused" for cell in runs),
        "failed": sum(cell.outcome not in GOOD for cell in runs),
    }
    outcomes = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{network_count} networks, {len(runs):,} combinations: {outcomes}."


def join_row(rows: list[Row], row: Row, columns: Sequence[str]) -> None:
    """Adds a row, or its network to the first row that says nothing else.

    What was not run goes with a ✓; a refusal or a fault is told of those that met it only.
    """
    for other in rows:
        agrees = True
        for column, old, new in zip(columns, other.texts, row.texts, strict=True):
            is_untold = {old, new} == {"", "✓"} and column not in OWN_COLUMNS
            agrees = agrees and (old == new or is_untold)
        if agrees:
            other.networks.extend(row.networks)
            other.texts = [old or new for old, new in zip(other.texts, row.texts, strict=True)]
            return
    rows.append(row)


def write_rows(rows: Sequence[Row], columns: Iterable[str]) -> list[str]:
    """The lines of one table."""
    names = list(columns)
    lines = [f"| network | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {', '.join(row.networks)} | {' | '.join(row.texts)} |")
    return lines


def write_cell(of_network: Mapping[str, Cell], names: Sequence[str], reasons: Reasons) -> str:
    """What one network's cells of a column say together."""
    loading = of_network.get(LOADING)
    if loading is not None and loading.outcome != "ok":
        return write_refusal(loading, reasons)
    cells = [of_network[name] for name in names if name in of_network]
    if not cells:
        return ""
    faults = [cell.method for cell in cells if cell.outcome not in GOOD]
    if faults:
        return f"✗ {', '.join(faults)}"
    refusals = [cell for cell in cells if cell.outcome == "refused"]
    if not refusals:
        return "✓"
    numbers = [write_refusal(cell, reasons).removeprefix("— ") for cell in refusals]
    if len(refusals) == len(cells):
        return f"— {' '.join(dict.fromkeys(numbers))}"
    by_number: dict[str, list[str]] = {}
    for cell, number in zip(refusals, numbers, strict=True):
        by_number.setdefault(number, []).append(cell.method)
    parts = [f"{', '.join(methods)} {number}" for number, methods in by_number.items()]
    return f"✓ but {', '.join(parts)}"


def write_refusal(cell: Cell, reasons: Reasons) -> str:
    """A dash and the number of the reason; a cross where loading fails otherwise."""
    if cell.outcome != "refused":
        return "✗"
    return f"— [{reasons.find_number(cell.reason)}]"
