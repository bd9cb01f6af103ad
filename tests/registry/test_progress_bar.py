"""The bar follows steps and scans, ends with them, and can follow another run."""

from pathlib import Path

import pytest
from helpers import smooth
from torch import Tensor

import sightline as sl


def test_follows_a_method(tiny: sl.Model, capsys: pytest.CaptureFixture[str]) -> None:
    sl.synthesis(tiny, "cat", steps=5, size=32, callback=sl.ProgressBar("cat"))
    shown = capsys.readouterr().err
    assert "cat: 100%" in shown
    assert "5/5" in shown


def test_follows_a_scan(tiny: sl.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(smooth(3)):
        sl.write(image[None], folder / f"{number}.png")
    sl.scan(tiny, folder, store=tmp_path / "photos.scan", callback=sl.ProgressBar())
    assert "3/3" in capsys.readouterr().err


def test_follows_one_run_after_another(
    tiny: sl.Model, photo: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = sl.ProgressBar()
    for steps in (4, 3):
        sl.adversarial(tiny, photo, steps=steps, early=False, callback=bar)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "3/3" in shown


def test_a_stopped_run_leaves_the_bar_where_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = sl.ProgressBar("part")
    bar(sl.Step(2, 8, smooth(1).flatten(), smooth(1)))
    bar.close()
    assert "part:  25%" in capsys.readouterr().err
    bar(sl.Step(1, 8, smooth(1).flatten(), smooth(1)))
    bar.close()
    assert "part:  12%" in capsys.readouterr().err
