"""What a user without permissions sees: one line, for each door.

The tests run as root in CI's containers, which may do anything. So each command runs in a fork that
has become nobody, after its modules were imported.
"""

import contextlib
import io
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.app.cli.main import main
from sightline.generators.checkpoint import SHIPPED_STYLE_NETWORKS
from sightline.images.io.library import ASSETS_FOLDER

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else"
)

NOBODY = 65534
SMALL = ("--size", "64", "--quiet")

# Command lines, and what their one line says.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "weights": (["saliency", "photo.png", "--weights", "locked/w.safetensors", *SMALL], "locked"),
    "folder as weights": (["saliency", "photo.png", "--weights", "locked", *SMALL], "locked"),
    "image": (["saliency", "mine.png", *SMALL], "mine.png: Permission denied"),
    "result": (["saliency", "photo.png", "--out", "locked/made", *SMALL], "can't write"),
    "read-only result": (["saliency", "photo.png", "--out", "fixed/made", *SMALL], "can't write"),
    "recipe": (["again", "locked/recipe.json"], "locked/recipe.json"),
    "style network": (["stylizer", "apply", "locked/p.safetensors", "photo.png"], "locked"),
    "picture to restyle": (["stylizer", "apply", "painters", "mine.png"], "mine.png"),
    "folder to restyle": (["stylizer", "apply", "painters", "locked", "--quiet"], "locked"),
    "restyled": (["stylizer", "apply", "painters", "photo.png", "--out", "fixed/x"], "can't write"),
    "style": (["style", "photo.png", "mine.png", "--steps", "1", *SMALL], "mine.png"),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that anybody may write, with one that nobody may read and one that is fixed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chdir(folder)
        prepare_place(Path(folder))
        yield Path(folder)
        os.chdir(before)


def prepare_place(folder: Path) -> None:
    """Writes the files, and runs each kind of command once."""
    folder.chmod(0o777)
    sl.write(smooth(side=80)[..., :72], "photo.png")
    sl.write(smooth(side=80, seed=1)[..., :72], "mine.png")
    Path("mine.png").chmod(0)
    for name, mode in (("locked", 0), ("fixed", 0o555)):
        Path(name).mkdir()
        sl.write(smooth(side=80), f"{name}/photo.png")
        Path(name, "w.safetensors").write_bytes(
            (ASSETS_FOLDER / "sightnet_plain.safetensors").read_bytes()
        )
        Path(name, "p.safetensors").write_bytes(SHIPPED_STYLE_NETWORKS["painters"].read_bytes())
        Path(name, "recipe.json").write_text("{}", encoding="utf-8")
        Path(name).chmod(mode)
    torch.set_num_threads(1)
    # What is imported later could not be found by nobody, where Python lies in root's own folder.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for words in (
            ["saliency", "photo.png", *SMALL, "--out", "warm"],
            ["style", "photo.png", "photo.png", "--steps", "1", *SMALL, "--out", "warm"],
            ["stylizer", "apply", "painters", "photo.png", "--out", "warm"],
            ["again", "fixed/recipe.json"],
        ):
            main(words)


def run_as_nobody(words: list[str]) -> tuple[int, str]:
    """The exit status of a command and its error stream, of a user without rights."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lancedb, and of Python: this process has threads
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 99
        errors = io.StringIO()
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                status = main(words)
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            errors.write(f"raw {error!r}")
        os.write(writer, errors.getvalue().encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        shown = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), shown


@pytest.mark.parametrize("name", COMMANDS)
def test_what_may_not_be_read_or_written_is_one_line(name: str, place: Path) -> None:
    words, reason = COMMANDS[name]
    status, shown = run_as_nobody(words)
    assert (status, shown.count("\n")) == (1, 1), shown
    assert shown.startswith("sightline: ")
    assert reason in shown
    assert sorted(path.name for path in (place / "fixed").iterdir()) == [
        "p.safetensors",
        "photo.png",
        "recipe.json",
        "w.safetensors",
    ]


def test_what_may_be_read_and_written_works(place: Path) -> None:
    status, shown = run_as_nobody(["saliency", "photo.png", "--out", "made", *SMALL])
    assert (status, shown) == (0, "")
    assert (place / "made" / "recipe.json").is_file()
