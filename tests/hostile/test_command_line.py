"""Every option of every method with wrong values: one line, no traceback, nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import smooth

import sightline as sl
from sightline.app.cli import execution
from sightline.app.cli.declarations import ParameterDeclaration, read_method_declarations
from sightline.app.cli.main import main
from sightline.methods import load_methods
from sightline.registry.method import METHODS

HUGE = "9" * 40
LONG = "a" * 5000


def list_wrong_values(declaration: ParameterDeclaration) -> list[str]:
    """Texts that an option of numbers or choices can't take."""
    kinds = (declaration.type, *get_args(declaration.type))
    if str in kinds or Path in kinds or any("str" in str(kind) for kind in kinds):
        return []
    if bool in kinds:
        return ["--no=maybe"]
    if not {int, float} & set(kinds):
        return ["nosuch", "", LONG, "\N{SNOWMAN}\x1b[2J"]
    wrong = ["many", "nan", "", "1e", "0x1g", LONG, "1;2"]
    if int in kinds and float not in kinds:
        wrong += ["8.5", HUGE, "inf"]
    if declaration.limits:
        low, high = declaration.limits
        wrong += [str(low - 1), str(high * 2 + 1), "-inf"]
    return wrong


def choose_wrong_values(name: str) -> list[tuple[str, str]]:
    """Two wrong values of each option of a method, in turn from its list: every kind occurs."""
    chosen: list[tuple[str, str]] = []
    for number, option in enumerate(read_method_declarations()[name].parameters.values()):
        values = list_wrong_values(option)
        if option.name == "size":  # among the options that all commands share
            continue
        for offset in (0, 4):
            if values:
                chosen.append((option.name, values[(number + offset) % len(values)]))
    return chosen


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    """The embedded network is read from disk once."""
    load_methods()
    with pytest.MonkeyPatch.context() as patch:
        network = sl.load()
        patch.setattr(execution, "load", lambda *_, **__: network)
        yield


@pytest.mark.parametrize("name", read_method_declarations())
def test_wrong_values_of_every_option(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in choose_wrong_values(name):
        word = f"--{option.replace('_', '-')}={value}"
        status = main([name, word, "--quiet"])
        shown = capsys.readouterr()
        assert status in (1, 2), (word[:80], shown)
        assert shown.out == ""
        assert shown.err.count("\n") == 1, word[:80]
        assert shown.err.startswith("sightline: ")
        assert shown.err.strip().isprintable()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", read_method_declarations())
def test_every_method_runs_without_an_argument(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the call: what it is given is what it takes."""
    method = METHODS[name]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class CalledError(sl.SightlineError):
        """In place of the run."""

    def record_call(*args: Any, **parameters: Any) -> sl.Result:
        calls.append((args, parameters))
        raise CalledError("called")

    monkeypatch.setitem(METHODS, name, replace(method, function=record_call))
    monkeypatch.setattr(execution, "takes_scan", lambda _: False)
    assert main([name]) == 1
    ((args, parameters),) = calls
    assert len(args) == (2 if method.subject else 1)
    for parameter, value in parameters.items():
        if parameter != "callback":
            method.parameters[parameter].check_value(value)


@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        (("samples",), False),
        (("models", "resnet"), False),
        (("models", "nosuch"), True),
        (("--nosuch",), True),
    ],
)
def test_ends_of_pipes(words: tuple[str, ...], is_refused: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sightline", *words]
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with full.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
        )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (closed.returncode != 0) is is_refused
    assert "Traceback" not in closed.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobodys_number(closed: str, tmp_path: Path) -> None:
    """A file that gets the number of the error stream would get what libraries write there."""
    sl.write(smooth(side=80)[..., :72], tmp_path / "photo.png")
    words = ["saliency", "photo.png", "--size", "64", "--samples", "1", "--out", "made"]
    command = [sys.executable, "-m", "sightline", *words]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], check=False, cwd=tmp_path
    )
    assert done.returncode == 0
    assert sl.read(tmp_path / "made" / "saliency.png").isfinite().all()


WORDS: list[tuple[Callable[[], list[str]], str]] = [
    (lambda: ["saliency", LONG], "name too long"),
    (lambda: ["saliency", "rocket", "--out", LONG], "can't write"),
    (lambda: ["again", LONG], "can't be read as a recipe"),
    (lambda: ["scan", "/dev/zero"], "is no folder"),
]


@pytest.mark.parametrize(("make_words", "reason"), WORDS, ids=["image", "out", "recipe", "device"])
def test_paths_that_the_system_refuses(
    make_words: Callable[[], list[str]], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(make_words()) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert len(shown) < 1100


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        PermissionError(13, "Permission denied", "photo.png"),
        OSError(28, "No space left on device"),
    ],
    ids=["python", "torch", "cuda", "permission", "disk"],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(execution, "run_method", fail)
    assert main(["saliency"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "Traceback" not in shown


# ── the surroundings of a process ──


def run_in_process(
    *words: str, cwd: Path, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, with more variables in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "sightline", *words],
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_that_lacks_characters_has_escapes(encoding: str, tmp_path: Path) -> None:
    """As a pipe on Windows has, or a locale that is not UTF-8."""
    done = run_in_process("methods", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u03a3" in done.stdout  # the Σ of a formula
    refused = run_in_process("scan", "\u03a3", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert refused.returncode == 1
    assert refused.stderr.count(b"\n") == 1
    listed = run_in_process("methods", "--json", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert json.loads(listed.stdout)["methods"]


@pytest.mark.parametrize("columns", ["0", "1", "7", "-3", "wide"])
def test_help_in_a_terminal_of_hardly_any_columns(columns: str, tmp_path: Path) -> None:
    done = run_in_process("saliency", "--help", cwd=tmp_path, COLUMNS=columns, LINES=columns)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--samples" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use can't be removed")
def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    leave = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh"]
    script = "from sightline.app.cli.main import run_script; run_script()"
    done = subprocess.run(
        [*leave, sys.executable, "-c", script, "predictions", "rocket"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sightline: the working folder can't be read")
    assert done.stderr.count("\n") == 1
