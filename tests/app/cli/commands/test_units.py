"""`sightline units`: what it lists, in which order, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.units.facts import read_unit_facts


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of eleven pictures in two classes."""
    root = tmp_path_factory.mktemp("units")
    for number, picture in enumerate(smooth(11, side=40)):
        sl.write(picture, root / "photos" / ("ant", "bee")[number % 2] / f"{number:02}.png")
    model = sl.load(small_network(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    return sl.scan(model, root / "photos", store=root / "a.scan").path


def list_units(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The units that a command lists as JSON."""
    assert main(["units", *words, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return json.loads(shown.out)["units"]


def test_json_has_the_facts(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list_units(capsys, "--store", str(store), "--layer", "conv2")
    scan = sl.Scan.open(store)
    facts = read_unit_facts(scan, "conv2")
    assert [row["unit"] for row in rows] == list(range(12))
    for unit, row in enumerate(rows):
        assert row["frequency"] == facts.frequency[unit]
        assert row["quantiles"] == facts.quantiles[unit].tolist()
        assert row["top"] == facts.top_images[unit].tolist()
        assert row["middle"] == facts.middle_images[unit].tolist()
        assert row["bottom"] == facts.bottom_images[unit].tolist()
        assert row["dead"] == facts.is_dead[unit]
        assert row["class"] == scan.class_names[facts.selective_class[unit]]
        assert row["selectivity"] == facts.selectivity[unit]
        nearest = [
            (entry["layer"], entry["unit"], entry["correlation"]) for entry in row["nearest"]
        ]
        assert nearest == facts.nearest_units[unit]


@pytest.mark.parametrize("order", ["frequency", "selectivity", "mean", "median", "largest"])
def test_orders(order: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = read_unit_facts(sl.Scan.open(store), "conv3")
    values = {
        "frequency": facts.frequency,
        "selectivity": facts.selectivity,
        "mean": facts.mean,
        "median": facts.quantiles[:, 5],
        "largest": facts.quantiles[:, 10],
    }[order]
    words = ("--store", str(store), "--layer", "conv3", "--sort", order)
    units = [row["unit"] for row in list_units(capsys, *words)]
    assert units == sorted(range(16), key=lambda unit: (-values[unit], unit))
    reversed_units = [row["unit"] for row in list_units(capsys, *words, "--reverse")]
    assert reversed_units == sorted(range(16), key=lambda unit: (values[unit], unit))
    assert [row["unit"] for row in list_units(capsys, *words, "--limit", "3")] == units[:3]


def test_some_units(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--store", str(store), "--layer", "conv2", "--unit", "7", "2", "7")
    assert [row["unit"] for row in list_units(capsys, *words)] == [2, 7]
    words = (*words, "--sort", "mean", "--limit", "1")
    means = read_unit_facts(sl.Scan.open(store), "conv2").mean
    assert [row["unit"] for row in list_units(capsys, *words)] == [2 if means[2] > means[7] else 7]


def test_a_line_each(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["units", "--store", str(store), "--layer", "conv3", "--limit", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "conv3, 11 images"
    assert [line.split()[0] for line in lines[1:6]] == ["unit", "0", "1", "2", "3"]
    assert lines[6] == "… 12 more; --limit 0 lists all"
    facts = read_unit_facts(sl.Scan.open(store), "conv3")
    assert f"{facts.frequency[1]:.1%}" in lines[3]
    layer, unit, correlation = facts.nearest_units[0][0]
    assert np.isclose(correlation, facts.neighbor_correlations[0, 0])
    assert (f"{layer} {unit} (r = " in lines[2]) or "dead" in lines[2] or "duplicate" in lines[2]
    assert main(["units", "--store", str(store), "--layer", "conv3", "--limit", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 18


def test_refusals_are_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    for number, picture in enumerate(smooth(3, side=40)):
        sl.write(picture, plain / f"{number}.png")
    model = sl.load(small_network(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    bare = sl.scan(model, plain, store=tmp_path / "bare.scan", responses=False).path
    unlabelled = sl.scan(model, plain, store=tmp_path / "plain.scan").path
    stopped = sl.scan(
        model, plain, store=tmp_path / "part.scan", batch=1, callback=lambda _: True
    ).path
    for folder, words, message in (
        (store, ["--layer", "conv9"], "did you mean conv"),
        (store, ["--layer", "conv3", "--unit", "16"], "unit is 16; it must lie between 0 and 15"),
        (store, ["--layer", "conv3", "--limit", "-1"], "limit is -1; it must be at least 0"),
        (bare, ["--layer", "conv3"], "made without responses: scan again with --responses"),
        (unlabelled, ["--layer", "conv3", "--sort", "selectivity"], "knows no two classes"),
        (stopped, ["--layer", "conv3"], "is not complete (1 of 3 files)"),
    ):
        assert main(["units", "--store", str(folder), *words]) == 1
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.out == ""
        assert len(shown.err.splitlines()) == 1
    assert main(["units", "--store", str(unlabelled), "--layer", "conv3"]) == 0
    assert "–" in capsys.readouterr().out
