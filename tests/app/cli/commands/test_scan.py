"""`sightline scan` and `sightline store`: what they print, write, refuse and go on with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import smooth

import sightline as sl
from sightline.app.cli.application import STORE_COMMANDS
from sightline.app.cli.commands import scan as scanning
from sightline.app.cli.main import main
from sightline.data.scan.run import Passing
from sightline.images.io import pictures as images
from sightline.models.zoo import load as zoo

WORDS = ("scan", "photos", "--store", "a.scan", "--size", "32", "--quiet")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with five pictures in two classes and what is none."""
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        images.write(
            smooth(side=40, seed=number),
            Path("photos") / ("ant", "bee")[number % 2] / f"{number}.png",
        )
    Path("photos/bee/broken.jpg").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def network_once() -> Iterator[None]:
    """The embedded network is read from disk once for the whole file."""
    patch, ready = pytest.MonkeyPatch(), zoo.load()
    patch.setattr(scanning, "load", lambda *_args, **_given: ready)
    yield
    patch.undo()


@pytest.mark.parametrize("name", STORE_COMMANDS)
def test_help_and_the_summaries_announced(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", name, "--help"]) == 0
    assert capsys.readouterr().out
    assert (getattr(scanning, name).__doc__ or "").split("\n")[0] == STORE_COMMANDS[name]


def test_scan_then_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:2] == ["5 images in a.scan", "1 files could not be read:"]
    assert told.out.splitlines()[2].startswith("  1 × ")
    assert told.err == ""
    assert main([*WORDS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "store": "a.scan",
        "images": 5,
        "errors": 1,
        "complete": True,
        "responses": True,
    }
    assert main(["store", "info", "a.scan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 images, 1 errors, ")
    assert lines[0].endswith("; complete")
    assert "2 known classes" in lines[2]
    assert main(["store", "info", "a.scan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["ant", "bee"]
    assert main(["store", "verify", "a.scan"]) == 0
    assert capsys.readouterr().out == "a.scan is whole\n"
    assert main(["store", "compact", "a.scan", "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out).values()
    assert 0 < after <= before
    assert sl.Scan.open("a.scan").images == 5


def test_interrupted_and_gone_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*given: Any, callback: Any, **options: Any) -> sl.Scan:
        def stop(event: Passing) -> bool:
            callback(event)
            return event.done >= 2

        return sl.scan(*given, callback=stop, **options)

    words = [*WORDS, "--batch", "2", "--k", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "scan_dataset", stopping)
        assert main(words) == 130
    assert capsys.readouterr().out == "2 images in a.scan; stopped, the same command resumes it\n"
    assert main(["store", "verify", "a.scan"]) == 0
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1] == "5 images in a.scan"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scan", "absent"), "there is no folder, list or archive absent"),
        (("scan", "photos", "--k", "7"), "k is 7; the dataset has 6 images"),
        (("scan", "photos", "--store", "photos"), "photos exists and is no store"),
        (("scan", "photos", "--layers", "conv99"), "no layer named 'conv99'"),
        (("store", "info", "absent.scan"), "absent.scan is no store: there is nothing"),
        (("store", "verify", "photos"), "photos is no store"),
    ],
)
def test_refuses_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert said in told.err


def test_verify_tells_of_a_damaged_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--json"]) == 0
    capsys.readouterr()
    state = Path("a.scan/state.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    assert main(["store", "verify", "a.scan"]) == 1
    assert "a.scan is damaged" in capsys.readouterr().err
