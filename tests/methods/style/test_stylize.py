"""The method that shows a trained style network: what its numbers mean, and blends."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import (
    read_fixed_style_network,
    read_style_network,
    write_any_style_network,
    write_fixed_style_network,
)
from sightline.images.io import pictures as images
from sightline.images.io.library import PAINTINGS_FOLDER
from sightline.optim.perceptual.layers import choose_perceptual_layers

HEIGHT, WIDTH = 40, 64


def make_photos(count: int = 1, seed: int = 2) -> Tensor:
    return smooth(count, WIDTH, seed)[..., :HEIGHT, :]


def crop_painting(name: str) -> Tensor:
    """A painting resized to fill the photographs' size: tall ones lose rows, wide ones columns."""
    painting = sl.read(PAINTINGS_FOLDER / f"{name}.jpg")
    height, width = painting.shape[-2:]
    if height / width > HEIGHT / WIDTH:
        size = (round(height * WIDTH / width), WIDTH)
    else:
        size = (HEIGHT, round(width * HEIGHT / height))
    resized = torch.nn.functional.interpolate(painting, size, mode="bilinear", antialias=True)
    top, left = (size[0] - HEIGHT) // 2, (size[1] - WIDTH) // 2
    return resized[:, :, top : top + HEIGHT, left : left + WIDTH]


def compute_gram(model: sl.Model, image: Tensor, layer: str) -> Tensor:
    """FFᵀ/M of one image."""
    rows = model.features(image, layer)[layer][0].flatten(1)
    return rows @ rows.T / rows.shape[1]


def test_every_shipped_style_is_shown(tiny: sl.Model) -> None:
    painters = read_fixed_style_network("painters")
    photos = make_photos(2)
    result = sl.stylize(tiny, photos)
    assert result.values["names"] == list(painters.names)
    assert result.tensors["image"].shape == (2, len(painters.names), 3, HEIGHT, WIDTH)
    for index, name in enumerate(painters.names):
        expected = restyle_images(painters, photos, painters.make_mix(name))
        torch.testing.assert_close(result.tensors["image"][:, index], expected)
        assert name in result.captions["stylize"]
    pictures = result.tensors["image"][0].flatten(1)
    distances = torch.cdist(pictures, pictures) + 9 * torch.eye(len(pictures))
    assert distances.min() > 1, "no two styles are alike"


def test_losses_are_the_papers_sums(tiny: sl.Model) -> None:
    """Content and style losses of a blend, written out; the second of two photographs."""
    photos = make_photos(2)
    styles = ("great_wave", "scream:3,great_wave:1")
    values = sl.stylize(tiny, photos, styles=styles).tensors
    photo = photos[1:]
    result = values["image"][1:, 1]
    layers = choose_perceptual_layers(tiny)

    losses = {"style_before": 0.0, "style_after": 0.0}
    for layer in layers.style:
        scream, wave = (
            compute_gram(tiny, crop_painting(name), layer) for name in ("scream", "great_wave")
        )
        target = 0.75 * scream + 0.25 * wave
        for name, picture in (("style_before", photo), ("style_after", result)):
            error = (compute_gram(tiny, picture, layer) - target).square().mean() / 4
            losses[name] += float(error) / len(layers.style)
    for name, loss in losses.items():
        assert values[name].shape == (2, 2)
        assert float(values[name][1, 1]) == pytest.approx(loss, rel=1e-3, abs=1e-6)

    (layer,) = layers.content
    difference = tiny.features(photo, layer)[layer] - tiny.features(result, layer)[layer]
    assert float(values["content"][1, 1]) == pytest.approx(
        float(difference.square().mean()), rel=1e-3, abs=1e-6
    )


def test_the_caption_tells_the_share_of_the_style_loss(tiny: sl.Model) -> None:
    result = sl.stylize(tiny, make_photos(2), styles=("scream",))
    shares = result.tensors["style_after"] / result.tensors["style_before"]
    assert f"scream {float(shares.mean()):.0%}." in result.captions["stylize"]


def test_a_style_may_be_asked_for_twice(tiny: sl.Model) -> None:
    values = sl.stylize(tiny, make_photos(), styles=("scream", "scream")).tensors
    assert values["style_after"].shape == (1, 2)
    assert torch.equal(values["image"][:, 0], values["image"][:, 1])


def test_the_shipped_network_has_learned_its_styles() -> None:
    """In the embedded network, which was no part of the training, each result is nearer."""
    model = sl.load()
    values = sl.stylize(model, model.fit(sl.sample("chelsea"), 128)).tensors
    shares = values["style_after"] / values["style_before"]
    assert (shares < 0.6).all(), shares


def test_a_blend_is_between_its_styles(tiny: sl.Model) -> None:
    first, second = read_fixed_style_network("painters").names[:2]
    styles = (first, f"{first}:1,{second}:1", second)
    pictures = sl.stylize(tiny, make_photos(), styles=styles).tensors["image"][0]
    distance = (pictures[2] - pictures[0]).abs().mean()
    assert (pictures[1] - pictures[0]).abs().mean() < distance
    assert (pictures[1] - pictures[2]).abs().mean() < distance


def test_another_network_has_no_painting_to_compare(tiny: sl.Model, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    write_fixed_style_network(make_stylizer(0, 2, width=4, blocks=1), ["a", "b"], path)
    result = sl.stylize(tiny, make_photos(), painter=path)
    assert set(result.values) == {"image", "names", "content"}
    assert "Style loss" not in result.captions["stylize"]


def test_a_network_for_any_style_takes_pictures(tiny: sl.Model, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    write_any_style_network(AdaINStylizer(sl.load()), path)
    images.write(smooth(side=60)[..., :52], tmp_path / "own.png")
    styles = ("scream", str(tmp_path / "own.png"))
    photos = make_photos()
    result = sl.stylize(tiny, photos, painter=path, styles=styles)
    style_network = read_style_network(path)
    for index, style in enumerate(styles):
        expected = restyle_images(style_network, photos, style_network.make_mix(style))
        torch.testing.assert_close(result.tensors["image"][:, index], expected)


def test_refusals(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="did you mean scream"):
        sl.stylize(tiny, make_photos(), styles=("screm",))
    with pytest.raises(sl.SightlineError, match="did you mean painters"):
        sl.stylize(tiny, make_photos(), painter="paintres")
    with pytest.raises(sl.SightlineError, match="too small for a style network"):
        sl.stylize(tiny, smooth(side=12))
