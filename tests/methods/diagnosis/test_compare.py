"""Two networks compared by their scans: the same, permuted, and changed on purpose."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import nn

import sightline as sl
from sightline.methods.diagnosis.compare import compare, pair_layers
from sightline.models.model import Model

LAYERS = ["conv1", "conv2", "conv3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in two classes, of any sizes."""
    root = tmp_path_factory.mktemp("images")
    pictures = smooth(40, side=36, seed=12)
    for number in range(40):
        path = root / ("bee", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(pictures[number][:, : 32 + number % 4], path)
    return root


def load(network: nn.Module, **settings: object) -> Model:
    options = {"labels": LABELS, "size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3, **settings}
    return Model(network.eval(), **options)  # type: ignore[arg-type]


def scan(model: Model, folder: Path, store: Path) -> sl.Scan:
    return sl.scan(model, folder, store=store, layers=LAYERS, vectors=["flatten"])


@pytest.fixture(scope="module")
def original(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    return scan(load(small_network()), folder, tmp_path_factory.mktemp("scans") / "old.scan")


def permute_channels(network: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with the channels of all convolutions in another order."""
    generator = torch.Generator().manual_seed(seed)
    names = ["conv1", "conv2", "conv3", "fc"]
    layers = [network.get_submodule(name) for name in names]
    with torch.no_grad():
        for first, second in pairwise(layers):
            order = torch.randperm(len(first.weight), generator=generator)  # type: ignore[arg-type]
            first.weight.copy_(first.weight[order].clone())  # type: ignore[operator, index]
            first.bias.copy_(first.bias[order].clone())  # type: ignore[operator, index]
            second.weight.copy_(second.weight[:, order].clone())  # type: ignore[operator, index]
    return network


def test_permuted_channels_are_no_difference(
    original: sl.Scan, folder: Path, tmp_path: Path
) -> None:
    other = scan(load(permute_channels(small_network(), 3)), folder, tmp_path / "b.scan")
    comparison = compare(original, other)
    assert comparison.is_same
    assert np.allclose(np.diag(comparison.cka), 1, atol=1e-5)
    assert comparison.flips == ()
    assert comparison.held_by_old == comparison.held_by_new == ()
    assert comparison.count_fates().keys() <= {"kept", "dead"}
    content = comparison.to_json()
    assert content["same"]
    assert content["flip_share"] == 0


def test_a_rewired_unit_stands_first(original: sl.Scan, folder: Path, tmp_path: Path) -> None:
    right = 0
    for seed in range(5):
        network = small_network()
        generator = torch.Generator().manual_seed(seed)
        layer = LAYERS[seed % 3]
        module = network.get_submodule(layer)
        unit = int(torch.randint(len(module.weight), (), generator=generator))  # type: ignore[arg-type]
        with torch.no_grad():
            weight = torch.randn(module.weight.shape[1:], generator=generator)  # type: ignore[union-attr, index]
            module.weight[unit] = weight * module.weight[unit].std()  # type: ignore[index, union-attr, operator]
        other = scan(load(network), folder, tmp_path / f"{seed}.scan")
        first = compare(original, other).changed_units[0]
        right += (first.layer, first.unit) == (layer, unit)
    assert right >= 4


def test_a_relabelled_class_stands_first(original: sl.Scan, folder: Path, tmp_path: Path) -> None:
    frequent, _ = torch.mode(original.top5[0][:, 0])
    network = small_network()
    fc = network.get_submodule("fc")
    swapped = (int(frequent) + 1) % 5
    with torch.no_grad():
        order = torch.arange(5)
        order[[int(frequent), swapped]] = order[[swapped, int(frequent)]]
        fc.weight.copy_(fc.weight[order].clone())  # type: ignore[operator, index]
        fc.bias.copy_(fc.bias[order].clone())  # type: ignore[operator, index]
    comparison = compare(original, scan(load(network), folder, tmp_path / "b.scan"))
    assert comparison.flips[0].title == f"{LABELS[int(frequent)]} → {LABELS[swapped]}"
    assert comparison.flip_share > 0
    assert comparison.count_fates().keys() <= {"kept", "dead"}


def test_one_network_under_two_preprocessings(
    original: sl.Scan, folder: Path, tmp_path: Path
) -> None:
    darker = scan(load(small_network(), mean=(0.3,) * 3), folder, tmp_path / "b.scan")
    comparison = compare(original, darker, images=30)
    assert len(comparison.ids) == 30
    assert not comparison.is_same
    assert comparison.performances is not None
    assert comparison.cka.shape == (3, 3)
    assert np.nanmax(comparison.cka) <= 1 + 1e-6


def test_other_architectures_are_paired_by_similarity(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = nn.Sequential(
        nn.Conv2d(3, 5, 5, 2), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, 3),
    )  # fmt: skip
    first = sl.scan(load(small_network()), folder, store=tmp_path / "a.scan")
    second = sl.scan(load(other, labels=("cat", "owl", "bee")), folder, store=tmp_path / "b.scan")
    comparison = compare(first, second)
    layers = ("conv1", "conv2", "conv3")
    assert {match.old_layer for match in comparison.matches} == set(layers)
    assert {match.new_layer for match in comparison.matches} == {"0", "2"}
    counts = comparison.count_fates()
    born = counts.pop("born", 0)
    unit_count = sum(first.responses(layer).shape[1] for layer in layers)
    assert sum(counts.values()) == unit_count == len(comparison.unit_changes)
    assert born <= 5 + 7
    assert comparison.class_names == (*LABELS, "owl")
    assert comparison.answers is not None


def test_classes_without_a_common_name_are_said(folder: Path, tmp_path: Path) -> None:
    first = scan(load(small_network()), folder, tmp_path / "a.scan")
    names = ("one", "two", "three", "four", "five")
    second = scan(load(small_network(), labels=names), folder, tmp_path / "b.scan")
    comparison = compare(first, second)
    assert comparison.answers is None
    assert comparison.flips == ()
    assert any("no name in common" in note for note in comparison.notes)


def test_bad_input_is_one_line(original: sl.Scan, folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        sl.write(smooth(1, side=32, seed=number)[0], few / f"{number}.png")
    model = load(small_network())
    small = scan(model, few, tmp_path / "few.scan")
    with pytest.raises(sl.SightlineError, match="scan the same images with both networks"):
        compare(original, small)
    with pytest.raises(sl.SightlineError, match="has 3 images; a comparison needs 20"):
        compare(small, small)
    bare = sl.scan(model, folder, store=tmp_path / "bare.scan", layers=LAYERS, responses=False)
    with pytest.raises(sl.SightlineError, match="made without responses"):
        compare(original, bare)
    with pytest.raises(sl.SightlineError, match="images is 5"):
        compare(original, original, images=5)


def test_layers_of_the_same_name_are_paired() -> None:
    rng = np.random.default_rng(0)
    old = {"a": rng.random((9, 3)), "b": rng.random((9, 4))}
    assert pair_layers(old, old, np.eye(2)) == [("a", "a"), ("b", "b")]
    other = {"x": old["b"], "y": old["a"]}
    assert pair_layers(old, other, np.array([[0.1, 0.9], [0.8, 0.2]])) == [("a", "y"), ("b", "x")]
    # x is most like b, and so is y; a is most like x.
    crossed = np.array([[0.5, 0.3], [0.8, 0.4]])
    assert pair_layers(old, other, crossed) == [("a", "x"), ("b", "x"), ("b", "y")]
    dead = np.array([[np.nan, 0.3], [np.nan, 0.4]])
    assert pair_layers(old, other, dead) == [("a", "y"), ("b", "y")]
