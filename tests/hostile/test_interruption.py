"""Ctrl-C at moments when a run has something to keep, or is in the middle of writing it."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.app.cli.main import ENDING_SIGNALS, INTERRUPTED, end_at_once, main
from sightline.app.cli.terminal import StepProgressBar

SMALL = ("--size", "64", "--out", "result", "--quiet")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture."""
    monkeypatch.chdir(tmp_path)
    sl.write(smooth(side=80)[..., :72], "photo.png")
    return tmp_path


def test_boundary_hears_ctrl_c_while_it_classifies_the_plane(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole plane would take minutes: 160,801 images."""
    on_step = StepProgressBar.on_step
    indices: list[int] = []

    def interrupt_in_the_plane(self: StepProgressBar, event: sl.Step) -> bool:
        indices.append(event.index)
        on_step(self, event)
        if event.index == 4:
            signal.raise_signal(signal.SIGINT)
        return self.stopped

    with monkeypatch.context() as patch:
        patch.setattr(StepProgressBar, "on_step", interrupt_in_the_plane)
        words = ("boundary", "photo.png", "--cells", "401", "--steps", "2", *SMALL)
        assert main(words) == INTERRUPTED
    assert indices == [1, 2, 3, 4]
    assert "Stopped: of the plane only" in capsys.readouterr().out
    assert sl.read("result/boundary.png").isfinite().all()
    recipe = json.loads(Path("result/recipe.json").read_text(encoding="utf-8"))
    assert recipe["stopped_after"] == 4

    assert main(["again", "result/recipe.json", "--out", "second"]) == 0
    for path in Path("result").iterdir():
        assert Path("second", path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("written_count", [0, 1, 2])
def test_ctrl_c_while_saving_leaves_no_folder_without_a_recipe(
    written_count: int, place: Path
) -> None:
    """As the installed command handles it: the process ends in the middle of the saving."""

    def run_child() -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, end_at_once)
        put_in_place = os.replace
        replaced_names: list[str] = []

        def put_or_interrupt(temporary: Path, path: Path) -> None:
            is_final = Path(path).absolute().parent == place / "result"
            if is_final and len(replaced_names) == written_count:
                signal.raise_signal(signal.SIGINT)
            if is_final:
                replaced_names.append(path.name)
            put_in_place(temporary, path)

        os.replace = put_or_interrupt
        os._exit(main(["saliency", "photo.png", *SMALL]))

    child = get_context("fork").Process(target=run_child)
    child.start()
    child.join(60)
    assert child.exitcode == INTERRUPTED
    result = place / "result"
    names = sorted(path.name for path in result.iterdir()) if result.exists() else []
    assert len(names) == written_count
    assert "recipe.json" in names or not result.exists()
    assert not [name for name in names if name.startswith(".")]


# Runs the command as its installed script does, and sends it a signal while it writes a picture.
ENDED_WHILE_WRITING = """
import os, signal, sys
number = int(sys.argv.pop(1))
sys.argv[0] = "/somewhere/bin/sightline"
from PIL import Image
save = Image.Image.save
def save_half(picture, file, *arguments, **options):
    save(picture, file, *arguments, **options)
    os.kill(os.getpid(), number)
Image.Image.save = save_half
from sightline.app.cli.main import run_script
sys.exit(run_script())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("name", ENDING_SIGNALS)
def test_asked_to_end_it_leaves_nothing_half_written(name: str, place: Path) -> None:
    number = getattr(signal, name)
    before = set(place.iterdir())
    command = [sys.executable, "-c", ENDED_WHILE_WRITING, str(number), "saliency", "photo.png"]
    done = subprocess.run(
        [*command, *SMALL],
        capture_output=True,
        text=True,
        check=False,
        # Tests under nohup ignore SIGHUP, and so would the command.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert done.returncode == 128 + number
    assert done.stderr == f"sightline: ended by signal {number}\n"
    assert set(place.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_signals_that_the_caller_ignores_stay_ignored(place: Path) -> None:
    number = signal.SIGHUP
    command = [sys.executable, "-c", ENDED_WHILE_WRITING, str(int(number)), "saliency", "photo.png"]
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command, *SMALL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "result" / "recipe.json").is_file()


# Runs the command as its installed script does, and interrupts it when a module is looked for.
INTERRUPTED_AT_IMPORT = """
import os, signal, sys
module = sys.argv.pop(1)
sys.argv[0] = "/somewhere/bin/sightline"
def interrupt(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
from sightline.app.cli.main import run_script
sys.exit(run_script())
"""


@pytest.mark.parametrize(
    "module",
    [
        "lazy_loader",
        "sightline.errors",
        "difflib",
        "cyclopts",
        "sightline.app.cli.methods",
        "torch",
    ],
)
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    words = (module, "saliency", "photo.png", *SMALL)
    command = [sys.executable, "-c", INTERRUPTED_AT_IMPORT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "sightline: interrupted\n"
    assert (done.returncode, done.stdout) == (INTERRUPTED, "")
    assert not Path("result").exists()


@pytest.mark.parametrize(
    "words", [["other.py"], ["-m", "other"], ["-m", "other", "-m", "sightline"]], ids=str
)
def test_a_program_that_imports_the_package_keeps_its_own_handler(
    words: list[str], place: Path
) -> None:
    code = "import signal, sightline\nprint(signal.getsignal(signal.SIGINT).__name__)"
    (place / "other.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True, cwd=place
    )
    assert done.stdout == "default_int_handler\n"
