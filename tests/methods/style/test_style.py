"""Style transfer: what the losses fall to, what each parameter changes, and what is refused."""

from typing import Any

import pytest
import torch
from helpers import small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.images.color import RGB_TO_YIQ, apply_channel_matrix
from sightline.images.io import pictures as images
from sightline.images.io.library import PAINTINGS_FOLDER
from sightline.images.transforms import resize_bicubic, resize_short_side
from sightline.methods.style.style import make_gray_noise

LAYERS: dict[str, Any] = {
    "content_layers": ("relu2",),
    "style_layers": ("relu1", "relu2", "relu3"),
}

HEIGHT, WIDTH = 56, 72


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return make_photo(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def grain() -> Tensor:
    """A style of fine noise."""
    noise = torch.rand(1, 3, 80, 72, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1)


def make_photo(height: int, width: int, seed: int = 1) -> Tensor:
    return smooth(1, max(height, width), seed)[..., :height, :width]


def fill_color(red: float, green: float, blue: float) -> Tensor:
    color = torch.tensor([red, green, blue]).view(1, 3, 1, 1)
    return color.expand(1, 3, 64, 48).clone()


def sum_losses(result: sl.Result, name: str) -> float:
    losses = result.values[name]
    assert isinstance(losses, dict)
    return sum(value[0] if isinstance(value, list) else value for value in losses.values())


# ── what the losses fall to ──


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("kind", ["gram", "w2", "sliced"])
def test_the_style_loss_halves(
    optimizer: str, kind: str, model: sl.Model, photo: Tensor, grain: Tensor
) -> None:
    parameters: dict[str, Any] = {
        "styles": (grain,),
        "loss": kind,
        "optimizer": optimizer,
        **LAYERS,
    }
    start = sl.style(model, photo, steps=1, lr=1e-6, **parameters)
    result = sl.style(model, photo, steps=25, **parameters)
    assert result.tensors["image"].shape == photo.shape
    assert sum_losses(result, "style_losses") < 0.5 * sum_losses(start, "style_losses")
    assert float(result.tensors["scores"][-1]) > float(result.tensors["scores"][0])


def test_the_photo_as_its_own_style_is_a_fixed_point(model: sl.Model, photo: Tensor) -> None:
    result = sl.style(model, photo, styles=(photo,), steps=5, **LAYERS)
    torch.testing.assert_close(result.tensors["image"], photo, atol=1e-3, rtol=0)
    assert sum_losses(result, "style_losses") < 1e-8
    assert sum_losses(result, "content_losses") < 1e-6


def test_content_alone_comes_back_from_noise(model: sl.Model, photo: Tensor, grain: Tensor) -> None:
    result = sl.style(
        model,
        photo,
        styles=(grain,),
        style_weight=0.0,
        start="noise",
        content_layers=("relu1",),
        style_layers=("relu1",),
        steps=80,
        coarse=False,
    )
    assert float((result.tensors["image"] - photo).abs().mean()) < 0.05


@pytest.mark.parametrize("painting", ["starry_night", "great_wave"])
def test_the_loss_falls_as_in_the_authors_notebook(painting: str) -> None:
    """Their losses after 50, 100, 200 and 300 of 500 evaluations over the last one.

    Ours are at the same shares of 100 steps, on a network of another scale.
    """
    published = [loss / 368_494 for loss in (1_388_532, 707_861, 469_375, 411_658)]
    photo = resize_short_side(sl.sample("coffee"), 64)
    model = sl.load(device="cpu")
    result = sl.style(model, photo, styles=(painting,), steps=100, coarse=False)
    losses = (-result.tensors["scores"]).tolist()
    ratios = [losses[step - 1] / losses[-1] for step in (10, 20, 40, 60)]
    assert ratios == sorted(ratios, reverse=True)
    for ratio, published_ratio in zip(ratios, published, strict=True):
        assert 2 / 3 < ratio / published_ratio < 3 / 2, ratios


# ── parameters ──


def test_tiles_give_the_same_image(model: sl.Model, grain: Tensor) -> None:
    noise = torch.rand(1, 3, 360, 440, generator=torch.Generator().manual_seed(0))
    photo = 0.9 * make_photo(360, 440) + 0.1 * noise
    parameters: dict[str, Any] = {
        "styles": (grain,),
        "steps": 3,
        "coarse": False,
        "optimizer": "adam",
        **LAYERS,
    }
    whole = sl.style(model, photo, memory=4.0, **parameters)
    tiled = sl.style(model, photo, memory=0.035, **parameters)
    assert whole.values["tile"] is None
    assert isinstance(tiled.values["tile"], int)
    assert f"In tiles of {tiled.values['tile']} pixels." in tiled.captions["style"]
    torch.testing.assert_close(
        tiled.tensors["scores"], whole.tensors["scores"], rtol=1e-3, atol=1e-6
    )
    assert float((tiled.tensors["image"] - whole.tensors["image"]).abs().mean()) < 1e-3


def test_masks_give_each_region_its_style(model: sl.Model, photo: Tensor) -> None:
    """Red in the upper left corner and blue elsewhere, beside the same with masks exchanged."""
    corner = torch.zeros(1, 3, HEIGHT, WIDTH)
    corner[..., :28, :30] = 1
    red_excess: list[Tensor] = []
    for masks in ((corner, 1 - corner), (1 - corner, corner)):
        result = sl.style(
            model,
            photo,
            styles=(fill_color(0.9, 0.1, 0.1), fill_color(0.1, 0.1, 0.9)),
            masks=masks,
            content_weight=0.0,
            steps=30,
            coarse=False,
            **LAYERS,
        )
        image = result.tensors["image"][0]
        red_excess.append(image[0] - image[2])
    difference = red_excess[0] - red_excess[1]
    assert difference[:24, :26].mean() > 0.1
    assert difference[32:, :26].mean() < -0.1
    assert difference[:24, 34:].mean() < -0.1


def test_shares_mix_styles(model: sl.Model, photo: Tensor, grain: Tensor) -> None:
    alone = sl.style(model, photo, styles=(grain,), steps=5, **LAYERS)
    parameters: dict[str, Any] = {"styles": (grain, 1 - grain), "steps": 5, **LAYERS}
    first_only = sl.style(model, photo, mix=(1.0, 0.0), **parameters)
    torch.testing.assert_close(
        first_only.tensors["image"], alone.tensors["image"], atol=1e-4, rtol=0
    )
    mixed = sl.style(model, photo, **parameters)
    assert not torch.allclose(mixed.tensors["image"], alone.tensors["image"], atol=1e-2)


@pytest.mark.parametrize(
    ("start", "style_scale", "size_count"),
    [("noise", 1.0, 3), ("noise", 0.15, 2), ("content", 1.0, 1)],
)
def test_sizes_for_which_a_style_is_a_single_position_are_left_out(
    start: str, style_scale: float, size_count: int, model: sl.Model, grain: Tensor
) -> None:
    parameters: dict[str, Any] = {"start": start, "style_scale": style_scale, **LAYERS}
    result = sl.style(model, make_photo(160, 170), styles=(grain,), steps=2, **parameters)
    assert len(result.tensors["scores"]) == 2 * size_count
    sizes = "one size" if size_count == 1 else f"{size_count} sizes"
    assert f"after {2 * size_count} steps at {sizes}." in result.captions["style"]


def test_luminance_keeps_the_photos_colors(model: sl.Model, grain: Tensor) -> None:
    photo = 0.35 + 0.3 * make_photo(HEIGHT, WIDTH)
    result = sl.style(
        model, photo, styles=(grain,), color="luminance", content_weight=10.0, steps=5, **LAYERS
    )
    chroma = apply_channel_matrix(result.tensors["image"], RGB_TO_YIQ)[:, 1:]
    photo_chroma = apply_channel_matrix(photo, RGB_TO_YIQ)[:, 1:]
    assert float((chroma - photo_chroma).abs().mean()) < 0.01


def test_match_takes_the_photos_colors_first(model: sl.Model, photo: Tensor) -> None:
    """A red style gives a redder picture; matched first, one of the photograph's mean colour."""
    red_grain = fill_color(0.8, 0.1, 0.1) + 0.1 * make_photo(64, 48, seed=9)
    parameters: dict[str, Any] = {"content_weight": 0.0, "steps": 20, **LAYERS}
    plain = sl.style(model, photo, styles=(red_grain,), **parameters).tensors["image"]
    matched = sl.style(model, photo, styles=(red_grain,), color="match", **parameters)
    mean_color = photo.mean((0, 2, 3))
    matched_error = (matched.tensors["image"].mean((0, 2, 3)) - mean_color).abs().max()
    plain_error = (plain.mean((0, 2, 3)) - mean_color).abs().max()
    assert matched_error < 0.5 * plain_error


def test_the_authors_number_is_theirs(model: sl.Model, photo: Tensor, grain: Tensor) -> None:
    """Their mean squared difference of FFᵀ/M, times 1e3/C² for 12 channels."""
    result = sl.style(
        model, photo, styles=(grain,), preset="authors", steps=2, coarse=False, **LAYERS
    )
    features = model.features(result.tensors["image"], "relu2")["relu2"][0].flatten(1)
    # As many pixels as the photograph has, in the shape of the style: 80/72 = 66.9/60.2.
    resized_style = resize_bicubic(grain, (67, 60))
    style_features = model.features(resized_style, "relu2")["relu2"][0].flatten(1)
    gram = features @ features.T / features.shape[1]
    style_gram = style_features @ style_features.T / style_features.shape[1]
    expected = (gram - style_gram).square().mean() * 1e3 / 12**2

    style_losses = result.values["style_losses"]
    assert isinstance(style_losses, dict)
    assert style_losses["relu2"][1] == pytest.approx(float(expected), rel=1e-3)
    total = sum(pair[1] for pair in style_losses.values())
    assert f"in total {total:.3g} as the preset's authors count" in result.captions["style"]
    assert "published for Caffe's VGG-19" in result.captions["style"]


def test_a_shipped_painting_is_a_style_by_its_name(model: sl.Model, photo: Tensor) -> None:
    painting = images.read(PAINTINGS_FOLDER / "great_wave.jpg")
    named = sl.style(model, photo, styles=("great_wave",), steps=2, **LAYERS)
    given = sl.style(model, photo, styles=(painting,), steps=2, **LAYERS)
    assert torch.equal(named.tensors["image"], given.tensors["image"])
    with pytest.raises(sl.SightlineError, match="great_wav: no such file"):
        sl.style(model, photo, styles=("great_wav",), steps=1, **LAYERS)


def test_each_image_of_a_batch_is_optimized_by_itself(model: sl.Model, grain: Tensor) -> None:
    """The first as alone; from noise, the next with the next seed. Values are of the first."""
    batch = smooth(2, WIDTH, 1)[..., :HEIGHT, :]
    parameters: dict[str, Any] = {"styles": (grain,), "start": "noise", "steps": 3, **LAYERS}
    together = sl.style(model, batch, seed=5, **parameters)
    for index in range(2):
        alone = sl.style(model, batch[index : index + 1], seed=5 + index, **parameters)
        image = together.tensors["image"][index : index + 1]
        torch.testing.assert_close(image, alone.tensors["image"])
        if index == 0:
            assert together.values["style_losses"] == alone.values["style_losses"]
            assert torch.equal(together.tensors["scores"], alone.tensors["scores"])


def test_a_callback_stops_it_with_the_images_so_far(model: sl.Model, grain: Tensor) -> None:
    batch = smooth(3, WIDTH, 1)[..., :HEIGHT, :]
    step_numbers: list[int] = []

    def stop_in_the_second_image(step: sl.Step) -> bool:
        step_numbers.append(step.index)
        return len(step_numbers) == 6

    result = sl.style(
        model,
        batch,
        styles=(grain,),
        steps=4,
        coarse=False,
        callback=stop_in_the_second_image,
        **LAYERS,
    )
    assert step_numbers == [1, 2, 3, 4, 1, 2]
    assert len(result.tensors["image"]) == 2


def test_noise_is_gray_and_of_its_seed() -> None:
    noise = make_gray_noise((40, 56), 7)
    assert noise.shape == (1, 3, 40, 56)
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(noise, make_gray_noise((40, 56), 7))
    assert not torch.equal(noise, make_gray_noise((40, 56), 8))


# ── what is refused ──


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"styles": ()}, "styles is empty"),
        ({"mix": (1.0, 2.0)}, "mix is .* one share for each of the 1 styles"),
        ({"mix": (-1.0,)}, "none below 0"),
        ({"mix": (0.0,)}, "not all 0"),
        ({"masks": ("brick", "grass")}, "2 masks were given for 1 styles"),
        ({"masks": (torch.zeros(1, 3, 64, 64),)}, "mask 1 is black everywhere"),
        ({"loss": "sliced", "styles": ("brick", "grass")}, "takes one style and no masks"),
        ({"loss": "sliced", "masks": ("brick",)}, "takes one style and no masks"),
        ({"styles": ("nowhere.jpg",)}, "nowhere.jpg"),
        ({"style_layers": ("relu9",)}, "no layer named 'relu9'"),
        ({"style_scale": 0.11}, "is a single position in its deepest layer; raise style_scale"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_refuses_in_one_line(
    parameters: dict[str, Any], message: str, model: sl.Model, photo: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match=message) as error:
        sl.style(model, photo, **{**LAYERS, "styles": ("brick",), **parameters})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        ("gram", "and in tiles of 128 pixels about .* GB; raise memory or lower the size"),
        ("sliced", "the sliced loss sorts the whole picture"),
    ],
)
def test_what_exceeds_the_memory_is_refused_before_the_first_step(
    loss: Any, remedy: str, model: sl.Model, grain: Tensor
) -> None:
    step_numbers: list[int] = []
    message = rf"580×620 pixels need about .* GB, more than memory=0\.05.* {remedy}"
    with pytest.raises(sl.SightlineError, match=message) as error:
        sl.style(
            model,
            make_photo(580, 620),
            styles=(grain,),
            loss=loss,
            memory=0.05,
            callback=lambda step: step_numbers.append(step.index),
            **LAYERS,
        )
    assert "\n" not in str(error.value)
    assert not step_numbers


def test_an_image_that_is_too_small_is_refused(model: sl.Model) -> None:
    message = "the image is 31×50 pixels; style transfer needs 32×32 or more"
    with pytest.raises(sl.SightlineError, match=message):
        sl.style(model, torch.rand(1, 3, 31, 50))
