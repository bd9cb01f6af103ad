"""What a user without permissions sees of scans, stores, sites and trainings: one line.

LanceDB has threads that a fork does not take along. So this process itself becomes nobody while a
command runs; its files and modules were read before.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.app.cli.main import main

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else"
)

NOBODY = 65534
SMALL = ("--size", "32", "--quiet")
TRAINING = ("--steps", "1", "--size", "32", "--quiet")

# Command lines, and what their one line says.
REFUSED: dict[str, tuple[list[str], str]] = {
    "scan to a fixed folder": (["scan", "photos", "--store", "fixed/a.scan", *SMALL], "fixed"),
    "scan of a locked folder": (["scan", "locked", "--store", "b.scan", *SMALL], "locked"),
    "scan to a fixed store": (["scan", "photos", "--store", "half.scan", *SMALL], "half.scan"),
    "locked store": (["store", "info", "locked/a.scan"], "locked/a.scan"),
    "locked store verified": (["store", "verify", "locked/a.scan"], "locked/a.scan"),
    "fixed store compacted": (["store", "compact", "fixed.scan"], "fixed.scan"),
    "training on a locked folder": (
        ["stylizer", "train", "photos/a.png", "--folder", "locked", "--out", "trained", *TRAINING],
        "locked",
    ),
    "training to a fixed folder": (
        [
            "stylizer",
            "train",
            "photos/a.png",
            "--folder",
            "photos",
            "--out",
            "fixed/trained",
            *TRAINING,
        ],
        "fixed",
    ),
}
ALLOWED: dict[str, list[str]] = {
    "fixed store described": ["store", "info", "fixed.scan"],
    "fixed store verified": ["store", "verify", "fixed.scan"],
    "units of a fixed store": ["units", "--store", "fixed.scan", "--layer", "conv1"],
    "patches of a fixed store": [
        "patches",
        "--store",
        "fixed.scan",
        "--layer",
        "conv1",
        "--out",
        "made",
        "--quiet",
    ],
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that anybody may write, with folders and stores that nobody may read or write."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chdir(folder)
        torch.set_num_threads(1)
        prepare_place(Path(folder))
        yield Path(folder)
        os.chdir(before)
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


def prepare_place(folder: Path) -> None:
    """Writes photographs and stores, and runs each kind of command once."""
    folder.chmod(0o777)
    for name in ("photos", "locked", "fixed"):
        Path(name).mkdir()
    for number, name in enumerate("abcde"):
        sl.write(smooth(side=48, seed=number)[..., :40], f"photos/{name}.png")
    model = sl.load()
    for store in ("fixed.scan", "locked/a.scan"):
        sl.scan(model, "photos", store=store, size=32)
    sl.scan(model, "photos", store="half.scan", size=32, batch=2, callback=lambda _: True)
    # What is imported later could not be found by nobody, where Python lies in root's own folder.
    for words in ([*ALLOWED["units of a fixed store"]], [*ALLOWED["patches of a fixed store"]]):
        other_words = [word.replace("fixed.scan", "locked/a.scan") for word in words]
        run_silently([word.replace("made", "warm") for word in other_words])
    run_silently(["store", "verify", "fixed.scan"])
    run_silently(
        ["stylizer", "train", "photos/a.png", "--folder", "photos", "--out", "warm", *TRAINING]
    )
    for path in (*Path("fixed.scan").rglob("*"), *Path("half.scan").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for name, mode in (("fixed.scan", 0o555), ("half.scan", 0o555), ("fixed", 0o555)):
        Path(name).chmod(mode)
    Path("locked").chmod(0)


def run_silently(words: list[str]) -> tuple[int, str]:
    """The exit status of a command, and its error stream."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return status, errors.getvalue()


@contextlib.contextmanager
def becoming_nobody() -> Generator[None, None, None]:
    """Context in which this process has no rights beyond everybody's."""
    group = os.getegid()
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_be_read_or_written_is_one_line(name: str, place: Path) -> None:
    words, reason = REFUSED[name]
    with becoming_nobody():
        status, shown = run_silently(words)
    assert (status, shown.count("\n")) == (1, 1), shown
    assert shown.startswith("sightline: ")
    assert reason in shown
    assert list((place / "fixed").iterdir()) == []


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ALLOWED)
def test_reading_needs_no_permission_to_write(name: str) -> None:
    with becoming_nobody():
        status, shown = run_silently(ALLOWED[name])
    assert (status, shown.startswith("sightline: ")) == (0, False), shown
