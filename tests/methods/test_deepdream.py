"""DeepDream: the sizes, the detail carried over them, the energy that rises, and the picture that is always whole."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sightline as sl
from sightline.ascend import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=48, device="cpu")


def pictures(count: int = 1, height: int = 64, width: int = 80) -> Tensor:
    coarse = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def energy(model: sl.Model, image: Tensor, layer: str, unit: int | None = None) -> Tensor:
    with torch.no_grad():
        features = model.features(image, layer)[layer]
    return features.square().flatten(1).mean(1) / 2 if unit is None else features[:, unit].flatten(1).mean(1)


@pytest.mark.parametrize(("layer", "unit"), [("conv2", None), ("relu2", None), ("relu2", 3), ("middle", None)])
def test_the_energy_rises(model: sl.Model, layer: str, unit: int | None) -> None:
    image = pictures(2)
    values = sl.deepdream(model, image, layer=layer, unit=unit, octaves=2, steps=5, step_size=0.02).values
    assert values["image"].shape == image.shape
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert values["scores"].shape == (10, 2)
    before, after = energy(model, image, layer, unit), energy(model, values["image"], layer, unit)
    assert (after > before + 0.3 * before.abs()).all()
    assert (values["scores"][4] > values["scores"][0]).all()
    assert (values["scores"][9] > values["scores"][5]).all()


def test_sizes_shrink_by_the_scale(model: sl.Model) -> None:
    seen: list[Step] = []
    sl.deepdream(model, pictures(), octaves=3, scale=1.4, steps=2, callback=seen.append)
    shapes = [tuple(step.image.shape) for step in seen]
    assert shapes == [(1, 3, 33, 41)] * 2 + [(1, 3, 46, 57)] * 2 + [(1, 3, 64, 80)] * 2
    assert [(step.index, step.total) for step in seen] == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_without_steps_of_any_length_it_is_the_image_itself(model: sl.Model, octaves: int) -> None:
    found = sl.deepdream(model, pictures(2), octaves=octaves, steps=2, step_size=0.0).values["image"]
    assert torch.allclose(found, pictures(2), atol=1e-5)


def test_detail_is_carried_over_and_the_base_is_never_blurred(model: sl.Model) -> None:
    """Only the smallest size dreams; the rest adds its enlarged detail to the sharp image."""
    seen: list[Step] = []
    sl.deepdream(model, pictures(), octaves=2, steps=1, step_size=0.05, jitter=0, callback=seen.append)
    small, large = seen
    base = nn.functional.interpolate(pictures(), size=(46, 57), mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(small.image, base, atol=1e-5)
    stopped = sl.deepdream(model, pictures(), octaves=2, steps=1, step_size=0.05, jitter=0, callback=lambda step: step.index == 1)
    assert torch.allclose(stopped.values["image"], large.image, atol=1e-5), "the second size begins where a stop would have ended"
    detail = large.image - pictures()
    assert detail.abs().mean() > 0.01
    coarse = nn.functional.interpolate(detail, size=(46, 57), mode="bilinear", antialias=True, align_corners=False)
    again = nn.functional.interpolate(coarse, size=(64, 80), mode="bilinear", align_corners=False)
    assert (again - detail).abs().mean() < 0.5 * detail.abs().mean(), "the detail is that of the small size"


@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_without_jitter_it_is_mordvintsevs_loop(model: sl.Model, octaves: int) -> None:
    """Per size: base plus all the detail so far, a few steps of g/mean|g|, and what differs from the base is the new detail."""
    detail = torch.zeros(2, 3, 64, 80)
    for height, width in ((33, 41), (46, 57), (64, 80))[-octaves:]:
        base = nn.functional.interpolate(pictures(2), size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        grown = nn.functional.interpolate(detail, size=(height, width), mode="bilinear", align_corners=False)
        x = (base + grown).clamp(0, 1).requires_grad_()
        for _ in range(3):
            score = model.features(x, "conv2")["conv2"].square().flatten(1).mean(1).sum() / 2
            (gradient,) = torch.autograd.grad(score, x)
            step = gradient / gradient.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
            x = (x + 0.01 * step).clamp(0, 1).detach().requires_grad_()
        detail = x.detach() - base
    found = sl.deepdream(model, pictures(2), layer="conv2", octaves=octaves, steps=3, step_size=0.01, jitter=0).values["image"]
    assert torch.allclose(found, x, atol=1e-4)


def test_jitter_is_reproducible(model: sl.Model) -> None:
    def made(seed: int, jitter: int = 8) -> Tensor:
        return sl.deepdream(model, pictures(), octaves=2, steps=3, step_size=0.02, jitter=jitter, seed=seed).values["image"]

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))
    assert torch.equal(made(3, 0), made(4, 0)), "nothing else is random"


def test_a_batch_is_its_images(model: sl.Model) -> None:
    together = sl.deepdream(model, pictures(3), octaves=2, steps=3, step_size=0.01).values["image"]
    alone = [sl.deepdream(model, image[None], octaves=2, steps=3, step_size=0.01).values["image"] for image in pictures(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_stop_at_any_size_gives_a_whole_picture(model: sl.Model, stop: int) -> None:
    image = pictures(2)
    seen: list[int] = []

    def halt(step: Step) -> bool:
        seen.append(step.index)
        return step.index == stop

    values = sl.deepdream(model, image, octaves=3, steps=2, step_size=0.02, callback=halt).values
    assert seen == list(range(1, stop + 1))
    assert values["image"].shape == image.shape
    assert values["scores"].shape == (stop, 2)
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert 1e-4 < (values["image"] - image).abs().mean() < 0.2


@given(st.integers(32, 120), st.integers(32, 120), st.sampled_from([1.01, 1.1, 1.3, 1.4, 2.0, 3.7]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_too_many_octaves_are_refused_with_the_right_number(model: sl.Model, height: int, width: int, scale: float) -> None:
    def tried(octaves: int) -> str:
        try:
            sl.deepdream(model, pictures(1, height, width), octaves=octaves, scale=scale, steps=1, callback=lambda _: True)
        except sl.SightlineError as error:
            return str(error)
        return ""

    refusal = tried(12)
    if not refusal:
        return
    most = int(re.search(r"allows (\d+)", refusal)[1])
    assert f"octaves is 12; an image of {height}×{width} pixels" in refusal
    assert tried(most) == ""
    assert f"allows {most}" in tried(most + 1)


def test_layers_units_and_knobs_out_of_range(model: sl.Model) -> None:
    for knobs, part in (
        ({"octaves": 1, "layer": "conv9"}, "conv9"),
        ({"octaves": 1, "layer": "conv1", "unit": 8}, "units 0 to 7"),
        ({"octaves": 13}, "octaves is 13; it must lie between 1 and 12"),
        ({"scale": 1.0}, "scale is 1.0"),
        ({"steps": 0}, "steps is 0"),
    ):
        with pytest.raises(sl.SightlineError, match=part):
            sl.deepdream(model, pictures(), **knobs)
