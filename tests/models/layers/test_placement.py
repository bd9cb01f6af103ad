"""Where outputs lie, on networks whose layouts are known because they were built so."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.layers.layouts import FeatureLayout
from sightline.models.layers.placement import (
    choose_layout_by_evidence,
    find_feature_layout,
    find_known_reading,
    has_channels_first,
    list_related_inputs,
    make_quadrant_images,
    measure_agreement,
    pick_agreeing_layout,
    split_axis_in_halves,
    split_axis_in_rings,
)

CPU = torch.device("cpu")
SIZE = (32, 48)


class Rearranged(nn.Module):
    """Convolution maps of 8 rows and 12 columns, in another order of the axes."""

    def __init__(self, rearrange: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 4, 4)
        self.other = nn.Identity()
        self.head = nn.Linear(channels, 4)
        self.rearrange = rearrange

    def forward(self, image: Tensor) -> Tensor:
        maps = self.conv(image)
        self.other(self.rearrange(maps))
        return self.head(maps.mean((2, 3)))


def load_rearranged(rearrange: Callable[[Tensor], Tensor], channels: int = 8) -> sl.Model:
    return sl.load(Rearranged(rearrange, channels).eval(), size=SIZE)


def find_layout(model: sl.Model, layer: str) -> FeatureLayout | None:
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    feature = model.run(image, [layer])[layer]
    return find_feature_layout(model, layer, feature.shape, image.shape)


# Eight channels on 8×12 positions: N×8×8×12 reads as channels first, N×8×12×8 as channels last,
# and N×96×8 or N×8×96 as tokens.
@pytest.mark.parametrize(
    ("rearrange", "order"),
    [
        (lambda maps: maps.permute(0, 2, 3, 1), "NHWC"),
        (lambda maps: maps.flatten(2).transpose(1, 2), "NTC"),
        (lambda maps: maps.flatten(2), "NCT"),
        (lambda maps: maps.flatten(2).permute(2, 0, 1), "TNC"),
    ],
    ids=["NHWC", "NTC", "NCT", "TNC"],
)
def test_each_order_of_the_axes_is_found(rearrange: Callable[[Tensor], Tensor], order: str) -> None:
    model = load_rearranged(rearrange)
    layout = find_layout(model, "other")
    assert layout is not None
    assert (layout.order, layout.rows, layout.columns) == (order, 8, 12)
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    tensors = model.run(image, ["other", "conv"])
    torch.testing.assert_close(layout.arrange_as_maps(tensors["other"]), tensors["conv"])


def test_a_convolution_has_its_channels_first_whatever_its_shape() -> None:
    model = load_rearranged(nn.Identity())
    assert has_channels_first(model, "conv")
    assert find_layout(model, "conv") == FeatureLayout("NCHW", 8, 12)
    assert not has_channels_first(model, "other")
    assert not has_channels_first(model, "no such layer")


def test_an_activation_has_the_layout_of_what_it_is_given() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GELU(), nn.Flatten(), nn.Linear(400, 5), nn.ReLU())
    model = sl.load(nn.Sequential(*layers).eval(), size=12)
    answers = {name: has_channels_first(model, name) for name in "012345"}
    assert answers == {"0": True, "1": True, "2": True, "3": False, "4": False, "5": False}


def test_a_vector_has_no_positions() -> None:
    assert find_layout(load_rearranged(nn.Identity()), "head") is None


def test_the_earliest_known_reading_counts() -> None:
    tokens = FeatureLayout("NTC", 8, 12)
    channels = FeatureLayout("NCT", 8, 12)
    larger = (FeatureLayout("NCT", 16, 24), FeatureLayout("NTC", 16, 24))
    assert find_known_reading((tokens, channels), larger) is channels
    assert find_known_reading((tokens, channels), larger[1:]) is tokens
    assert find_known_reading((tokens,), larger[:1]) is None
    with_class_token = FeatureLayout("NTC", 8, 12, extra_tokens=1)
    assert find_known_reading((with_class_token,), (tokens,)) is None


# ── evidence ──


def test_quadrants_change_one_at_a_time() -> None:
    images = make_quadrant_images(5, (7, 10), CPU)
    assert images.shape == (9, 5, 7, 10)
    changed = (images[1:5] != images[:1]).any(1)
    assert changed[0].nonzero().amax(0).tolist() == [2, 4]
    assert changed[3].nonzero().amin(0).tolist() == [3, 5]
    assert changed.sum(0).eq(1).all()  # each pixel belongs to one quadrant
    assert make_quadrant_images(5, (7, 10), CPU).equal(images)
    rings = (images[5:] != images[:1]).any(1)
    assert rings.sum(0).eq(1).all()
    corners, top_and_bottom, left_and_right, middle = rings
    assert corners[[0, 0, 6, 6], [0, 9, 0, 9]].all()
    assert top_and_bottom[[0, 6], [5, 5]].all()
    assert left_and_right[[3, 3], [0, 9]].all()
    assert middle[3, 5]


@pytest.mark.parametrize(
    ("length", "sides"), [(1, [-1]), (2, [0, 1]), (5, [0, 0, -1, 1, 1]), (4, [0, 0, 1, 1])]
)
def test_halves_of_an_axis(length: int, sides: list[int]) -> None:
    assert split_axis_in_halves(length).tolist() == sides


@pytest.mark.parametrize(
    ("length", "sides"),
    [(1, [1]), (2, [-1, -1]), (4, [0, 1, 1, 0]), (6, [0, -1, 1, 1, -1, 0]), (5, [0, 1, 1, 1, 0])],
)
def test_rings_of_an_axis(length: int, sides: list[int]) -> None:
    assert split_axis_in_rings(length).tolist() == sides


def test_maps_of_the_image_agree_and_turned_ones_do_not() -> None:
    images = make_quadrant_images(3, (8, 12), CPU)
    quadrants = images[:5]
    assert measure_agreement(quadrants, split_axis_in_halves) == 1
    assert measure_agreement(quadrants.flip(2), split_axis_in_halves) == 0
    assert measure_agreement(quadrants.roll(3, 3), split_axis_in_halves) == pytest.approx(0.5)
    assert measure_agreement(torch.ones(5, 3, 8, 12), split_axis_in_halves) == 0
    rings = images[[0, 5, 6, 7, 8]]
    assert measure_agreement(rings, split_axis_in_rings) == 1
    assert measure_agreement(rings.flip(2), split_axis_in_rings) == 1
    assert measure_agreement(rings.roll(3, 3), split_axis_in_rings) == pytest.approx(0.5)
    assert measure_agreement(rings.roll(4, 2), split_axis_in_rings) == 0


def test_the_reading_that_agrees_is_picked() -> None:
    images = make_quadrant_images(96, (8, 12), CPU)
    tokens = images.flatten(2).transpose(1, 2)  # 9×96×96 reads both ways
    layout = pick_agreeing_layout([tokens], (8, 12))
    assert layout is not None
    assert layout.order == "NTC"
    layout = pick_agreeing_layout([tokens.transpose(1, 2)], (8, 12))
    assert layout is not None
    assert layout.order == "NCT"
    assert pick_agreeing_layout([torch.ones(9, 96, 96)], (8, 12)) is None


def test_without_evidence_there_is_no_choice() -> None:
    model = load_rearranged(lambda maps: torch.ones(len(maps), 96, 8))
    assert choose_layout_by_evidence(model, "other", SIZE) is None


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        ("blocks.0.attn", ["blocks.0.attn:in", "blocks.0:in"]),
        ("blocks.0.attn:2", ["blocks.0.attn:in", "blocks.0:in"]),
        ("attn", ["attn:in"]),
        ("attn:in", []),
        ("blocks.0/add", ["blocks.0:in"]),
    ],
)
def test_inputs_that_lie_as_the_output_does(layer: str, inputs: list[str]) -> None:
    assert list_related_inputs(layer) == inputs


def test_mirror_images_side_by_side_are_not_shifted_windows() -> None:
    images = make_quadrant_images(3, (8, 12), CPU)
    views = torch.stack([images, images.flip(3), images.flip(2), images.flip(2, 3)], 1)
    assert pick_agreeing_layout([views.flatten(0, 1)], (16, 24)) is None
    tokens = views.flatten(0, 1).flatten(2).transpose(1, 2)
    assert pick_agreeing_layout([tokens], (16, 24)) is None


def test_shifted_windows_are_found() -> None:
    images = make_quadrant_images(3, (16, 24), CPU)
    rolled = images.roll((-4, -6), (2, 3)).permute(0, 2, 3, 1)
    windows = rolled.unflatten(1, (2, 8)).unflatten(3, (2, 12)).transpose(2, 3)
    layout = pick_agreeing_layout([windows.reshape(36, 96, 3)], (16, 24))
    assert layout is not None
    assert layout.windows is not None
    assert layout.windows.shift == (4, 6)
    assert torch.equal(layout.arrange_as_maps(windows.reshape(36, 96, 3)), images)
