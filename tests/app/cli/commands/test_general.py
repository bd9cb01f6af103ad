"""The commands that are not methods: lists of networks, layers and samples."""

import json

import pytest

import sightline as sl
from sightline.app.cli.commands.general import layers, models, samples


def test_samples_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert samples() == 0
    names = capsys.readouterr().out.splitlines()
    assert samples(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == names
    assert "rocket" in names
    for name in names[:2]:
        assert sl.sample(name).shape[:2] == (1, 3)


def test_models_whose_name_contains_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert models("resnet1", as_json=True) == 0
    matches = json.loads(capsys.readouterr().out)
    names = [name for library in matches.values() for name in library]
    assert "resnet18" in names
    assert all("resnet1" in name for name in names)
    assert models("resnet1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names
    with pytest.raises(sl.SightlineError, match="no network's name contains 'nosuchnet'"):
        models("nosuchnet")


def test_layers_of_the_embedded_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers() == 0
    lines = capsys.readouterr().out.splitlines()
    assert layers(as_json=True) == 0
    summary = json.loads(capsys.readouterr().out)
    network = sl.load()
    assert [row["name"] for row in summary["layers"]] == list(network.layers)
    assert summary["landmarks"] == dict(network.landmarks)
    first = summary["layers"][0]
    assert lines[0].split()[0] == first["name"]
    assert "×".join(map(str, first["shape"])) in lines[0]
