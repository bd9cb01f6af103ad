"""The strongest patches of units against all responses, and what is drawn of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.data.store.reader import Scan
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.methods.units import patches as patches_module
from sightline.methods.units.patches import find_middle_followed_layer, pick_range_indices
from sightline.models.tracing.crops import resize_for_sheet
from sightline.models.tracing.receptive_field import receptive_field

COUNT = 14
SIDE = 32


@pytest.fixture(scope="module")
def stored(tiny: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A scan of fourteen images of 36×40 pixels, in turn of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        path = folder / LABELS[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(smooth(seed=number, side=40)[:, :, :36], path)
    return sl.scan(tiny, folder, store=tmp_path_factory.mktemp("store") / "patches.scan")


@pytest.fixture
def images(stored: Scan) -> Tensor:
    """The images as the network saw them, 14×3×32×32."""
    return torch.cat([stored.image(image_id) for image_id in range(COUNT)])


def compute_maps(model: sl.Model, images: Tensor, layer: str, unit: int) -> Tensor:
    with torch.no_grad():
        return model.features(images, layer)[layer][:, unit]


def crop_literally(image: Tensor, box: list[int], fill: float) -> Tensor:
    """The pixels of a box one by one, `fill` where it reaches beyond the image 3×H×W."""
    top, left, bottom, right = box
    patch = torch.full((3, bottom - top, right - left), fill)
    for y in range(max(top, 0), min(bottom, image.shape[1])):
        for x in range(max(left, 0), min(right, image.shape[2])):
            patch[:, y - top, x - left] = image[:, y, x]
    return patch[None]


# ── one unit ──


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_patches_are_the_strongest_and_what_moves_them(
    stored: Scan, tiny: sl.Model, images: Tensor, layer: str
) -> None:
    values = sl.patches(tiny, store=stored.path, layer=layer, unit=2, k=4).values
    maps = compute_maps(tiny, images, layer, 2)
    order = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:4]
    assert values["ids"].tolist() == order.tolist()
    for rank, image_id in enumerate(order.tolist()):
        row, column = int(values["row"][rank]), int(values["column"][rank])
        assert maps[image_id, row, column] == maps[image_id].max()
        assert values["activation"][rank] == pytest.approx(float(maps[image_id].max()), abs=1e-5)

        # The pixels that the neuron depends on lie in the box.
        leaf = images[image_id : image_id + 1].requires_grad_()
        feature = tiny.features(leaf, layer)[layer]
        (gradient,) = torch.autograd.grad(feature[0, 2, row, column], leaf)
        rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
        top, left, bottom, right = values["box"][rank].tolist()
        assert max(top, 0) <= rows.min() <= rows.max() < min(bottom, SIDE)
        assert max(left, 0) <= columns.min() <= columns.max() < min(right, SIDE)
        if layer == "conv1":  # without a ReLU before it, every pixel in the box counts
            assert (max(top, 0), max(left, 0)) == (rows.min(), columns.min())
            assert (min(bottom, SIDE), min(right, SIDE)) == (rows.max() + 1, columns.max() + 1)


def test_cases_from_across_the_range_go_from_the_first_tenth_to_the_last(
    stored: Scan, tiny: sl.Model, images: Tensor
) -> None:
    values = sl.patches(tiny, store=stored.path, layer="conv2", unit=5, k=5).values
    maps = compute_maps(tiny, images, "conv2", 5)
    peaks = maps.flatten(1).amax(1)
    order = peaks.argsort(descending=True)
    ranks = [round(share * (COUNT - 1)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    expected_ids = order[ranks].tolist()
    assert values["middle_ids"].tolist() == expected_ids
    assert values["middle_activation"].tolist() == pytest.approx(
        peaks[expected_ids].tolist(), abs=1e-5
    )
    field = receptive_field(tiny, "conv2", SIDE, SIDE)
    for number, image_id in enumerate(expected_ids):
        row, column = divmod(int(maps[image_id].argmax()), maps.shape[2])
        assert int(values["middle_row"][number]) == row
        assert int(values["middle_column"][number]) == column
        assert tuple(values["middle_box"][number].tolist()) == field.window(row, column)
    quantiles = np.percentile(peaks.numpy(), range(0, 101, 10))
    assert values["quantiles"].tolist() == pytest.approx(quantiles.tolist(), abs=1e-5)


def test_the_range_is_spaced_evenly_between_its_tenths() -> None:
    assert pick_range_indices(1001, 9).tolist() == [100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert pick_range_indices(11, 2).tolist() == [1, 9]
    assert pick_range_indices(3, 9).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["gradient", "guided"])
def test_the_figure_shows_pixels_and_gradients_on_their_scales(
    stored: Scan,
    tiny: sl.Model,
    images: Tensor,
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pixels as they are; gradients around gray, ±(99.5th percentile) being 0 and 1."""
    unit = 7
    drawn: dict[str, Any] = {}
    compose = patches_module.compose_figure_rows
    draw = patches_module.draw_histogram

    def record_rows(rows: list[FigureRow], tile_side: int) -> Tensor:
        drawn["rows"] = rows
        return compose(rows, tile_side)

    def record_histogram(responses: list[float], marks: list[float], x_label: str) -> Tensor:
        drawn["histogram"] = (responses, marks, x_label)
        return draw(responses, marks, x_label)

    monkeypatch.setattr(patches_module, "compose_figure_rows", record_rows)
    monkeypatch.setattr(patches_module, "draw_histogram", record_histogram)
    result = sl.patches(tiny, store=stored.path, layer="conv2", unit=unit, k=3, rule=rule)
    values = result.values
    strongest, gradients, across_range = drawn["rows"]

    for row, prefix in ((strongest, ""), (across_range, "middle_")):
        image_ids = values[f"{prefix}ids"].tolist()
        boxes = values[f"{prefix}box"].tolist()
        for picture, image_id, box in zip(row.pictures, image_ids, boxes, strict=True):
            patch = crop_literally(images[image_id], box, fill=0.5)
            assert torch.equal(picture, resize_for_sheet(patch))
        class_names = [Path(stored.paths[image_id]).parent.name for image_id in image_ids]
        activations = values[f"{prefix}activation"].tolist()
        assert row.captions == [
            f"{activation:.3g}\n{class_name}"
            for activation, class_name in zip(activations, class_names, strict=True)
        ]

    gradient = values["gradient"]
    magnitudes = gradient.abs()[gradient != 0].sort().values
    limit = float(magnitudes[round(0.995 * len(magnitudes)) - 1])
    assert f"full colour ±{limit:.3g}, the 99.5th percentile" in result.captions["patches"]
    for picture, image_gradient, box in zip(
        gradients.pictures, gradient, values["box"].tolist(), strict=True
    ):
        colors = (0.5 + 0.5 * image_gradient / limit).clamp(0, 1)
        expected = resize_for_sheet(crop_literally(colors, box, fill=0.5))
        assert torch.allclose(picture, expected, atol=1e-6)
        assert picture.max() > 0.8
        assert picture.min() < 0.2

    peaks = compute_maps(tiny, images, "conv2", unit).flatten(1).amax(1)
    responses, marks, x_label = drawn["histogram"]
    assert sorted(responses) == pytest.approx(sorted(peaks.tolist()), abs=1e-5)
    assert marks == values["activation"].tolist()
    assert x_label == f"peak activation of unit {unit}"


def test_gradients_are_those_of_the_rule(stored: Scan, tiny: sl.Model, images: Tensor) -> None:
    values = sl.patches(tiny, store=stored.path, layer="conv2", unit=3, k=2, rule="gradient").values
    for rank in range(2):
        image_id = int(values["ids"][rank])
        leaf = images[image_id : image_id + 1].requires_grad_()
        feature = tiny.features(leaf, "conv2")["conv2"]
        neuron = feature[0, 3, values["row"][rank], values["column"][rank]]
        (gradient,) = torch.autograd.grad(neuron, leaf)
        assert torch.allclose(values["gradient"][rank], gradient[0], atol=1e-5)


# ── a layer ──


def test_a_sheet_has_the_patches_of_each_unit(
    stored: Scan, tiny: sl.Model, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 units 11 are shown, 10 tiles a row; with k=5, four patches of each."""
    drawn: dict[str, Any] = {}
    compose = patches_module.compose_figure_rows

    def record_rows(rows: list[FigureRow], tile_side: int) -> Tensor:
        drawn["rows"] = rows
        return compose(rows, tile_side)

    monkeypatch.setattr(patches_module, "compose_figure_rows", record_rows)
    monkeypatch.setattr(patches_module, "PATCH_TILE_COLUMNS", 10)
    sheet = sl.patches(tiny, store=stored.path, layer="conv2", k=5, max_units=11).values
    assert sheet["ids"].shape == (11, 4)
    assert sheet["box"].shape == (11, 4, 4)
    for unit in (0, 7, 10):
        single = sl.patches(tiny, store=stored.path, layer="conv2", unit=unit, k=4).values
        for name in ("activation", "ids", "row", "column", "box"):
            assert torch.equal(sheet[name][unit], single[name]), name

    sl.patches(tiny, store=stored.path, layer="conv2", k=5, max_units=11)
    rows = drawn["rows"]
    assert [len(row.pictures) for row in rows] == [10, 1]
    peak = float(sheet["activation"][10, 0])
    assert rows[1].captions == [f"unit 10\n{peak:.3g}"]
    tile = rows[1].pictures[0]
    for rank, corner in enumerate(("top left", "top right", "bottom left", "bottom right")):
        image_id = int(sheet["ids"][10, rank])
        box = sheet["box"][10, rank].tolist()
        patch = resize_for_sheet(crop_literally(images[image_id], box, fill=0.5))
        height, width = patch.shape[2:]
        assert tile.shape[2:] == (2 * height + 1, 2 * width + 1)  # one pixel of white between
        rows_shown = slice(0, height) if "top" in corner else slice(-height, None)
        columns_shown = slice(0, width) if "left" in corner else slice(-width, None)
        assert torch.equal(tile[..., rows_shown, columns_shown], patch)


def test_the_middle_layer_is_one_with_maps(tiny: sl.Model, tmp_path: Path) -> None:
    for number in range(3):
        sl.write(smooth(seed=number), tmp_path / f"{number}.png")
    layers = ("conv1", "conv2", "conv3", "logits", "penultimate")
    scan = sl.scan(tiny, tmp_path, store=tmp_path / "a.scan", layers=layers, k=2)
    assert find_middle_followed_layer(scan) == "conv2"
    flat = sl.scan(tiny, tmp_path, store=tmp_path / "b.scan", layers=("logits",), k=2)
    assert find_middle_followed_layer(flat) == "logits"
    result = sl.patches(tiny, store=flat.path, unit=1, k=2)
    assert "The whole images where unit 1 of logits is strongest" in result.captions["patches"]
    assert result.values["box"].tolist() == [[0, 0, SIDE, SIDE]] * 2


# ── what is refused ──


def test_refusals(stored: Scan, tiny: sl.Model) -> None:
    def run(**parameters: Any) -> Callable[[], object]:
        return lambda: sl.patches(tiny, store=stored.path, **parameters)

    cases = [
        (run(layer="relu1", unit=0), "relu1"),
        (run(layer="conv1", unit=8), "unit is 8; conv1 has units 0 to 7"),
        (run(layer="conv1", unit=0, k=20), "k is 20; it must lie between 1 and 14"),
    ]
    for call, message in cases:
        with pytest.raises(sl.SightlineError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


# ── small datasets and networks without convolutions ──


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """Five images of 36×40 pixels."""
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(5):
        sl.write(smooth(seed=90 + number, side=40)[:, :, :36], folder / f"{number}.png")
    return folder


def test_the_default_k_is_lowered_to_a_small_dataset(tiny: sl.Model, few_images: Path) -> None:
    single = sl.patches(tiny, folder=few_images, layer="conv2", unit=3)
    sheet = sl.patches(tiny, folder=few_images, layer="conv2")
    assert sorted(single.values["ids"].tolist()) == [0, 1, 2, 3, 4]
    assert sheet.values["ids"].shape == (12, 4)
    for result in (single, sheet):
        assert "The scan keeps only 5 images of each unit." in result.captions["patches"]
    for unit in (3, None):
        with pytest.raises(sl.SightlineError, match="k is 9; it must lie between 1 and 5"):
            sl.patches(tiny, folder=few_images, layer="conv2", unit=unit, k=9)


class SharedHead(torch.nn.Module):
    """A network that sees an image and its mirror image."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image) - 0.5 * self.network(image.flip(3))


@pytest.mark.parametrize("is_shared", [False, True])
def test_without_convolutions_units_of_the_last_hidden_layer_show_whole_images(
    few_images: Path, is_shared: bool
) -> None:
    torch.manual_seed(0)
    network: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(3 * SIDE * SIDE, 11),
        torch.nn.Tanh(),
        torch.nn.Linear(11, 4),
    )
    layer = "2"
    if is_shared:
        network = SharedHead(network)
        layer = "network.2:1"
    model = sl.load(network.eval(), size=SIDE)
    result = sl.patches(model, folder=few_images, unit=6, k=3)
    scan = sl.scan(model, few_images)
    images = torch.cat([scan.image(image_id) for image_id in range(5)])
    responses = compute_maps(model, images, layer, 6)
    order = responses.argsort(descending=True)[:3]
    assert result.values["ids"].tolist() == order.tolist()
    assert result.values["box"].tolist() == [[0, 0, SIDE, SIDE]] * 3
    assert f"The whole images where unit 6 of {layer}" in result.captions["patches"]
    assert "whole images" in sl.patches(model, folder=few_images).captions["patches"]
    unit_labels = sl.labels(model, folder=few_images)
    assert unit_labels.values["top_class"].shape == (11,)
    assert "the strongest images, whole" in unit_labels.captions["labels"]
