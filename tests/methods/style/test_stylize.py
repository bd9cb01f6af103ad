"""The method that shows the shipped style network: what its numbers mean, and blends."""

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
from sightline.images import io as images
from sightline.optim.perceptual.layers import choose_perceptual_layers


def test_every_shipped_style_is_shown(tiny: sl.Model, photo: Tensor) -> None:
    painters = read_fixed_style_network("painters")
    result = sl.stylize(tiny, photo)
    assert result.values["names"] == list(painters.names)
    assert result.values["image"].shape == (1, len(painters.names), 3, 32, 32)
    for index, name in enumerate(painters.names):
        expected = restyle_images(painters, photo, painters.make_mix(name))
        torch.testing.assert_close(result.values["image"][:, index], expected)
        assert name in result.captions["stylize"]
    pictures = result.values["image"][0].flatten(1)
    assert torch.cdist(pictures, pictures).add(torch.eye(len(pictures)) * 9).min() > 1, (
        "no two styles alike"
    )


def test_losses_are_the_papers_sums(tiny: sl.Model) -> None:
    """Content and style loss of one style, written out; the painting is cut to the photograph's size."""
    photo = smooth(side=64, seed=2)
    values = sl.stylize(tiny, photo, styles=("scream",)).values
    made = values["image"][:, 0]
    painting = sl.read(Path(sl.__file__).parent / "assets" / "paintings" / "scream.jpg")
    height, width = painting.shape[-2:]
    rows = round(height * 64 / width)
    painting = torch.nn.functional.interpolate(
        painting, (rows, 64), mode="bilinear", antialias=True
    )[:, :, (rows - 64) // 2 :][:, :, :64]
    style, layers = torch.zeros(2), choose_perceptual_layers(tiny).style

    def gram(image: Tensor, layer: str) -> Tensor:
        rows = tiny.features(image, layer)[layer][0].flatten(1)
        return rows @ rows.T / rows.shape[1]

    for layer in layers:
        for i, picture in enumerate((photo, made)):
            style[i] += (
                (gram(picture, layer) - gram(painting, layer)).square().mean() / 4 / len(layers)
            )
    torch.testing.assert_close(values["style_before"], style[:1, None], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(values["style_after"], style[1:, None], rtol=1e-3, atol=1e-6)
    layer = choose_perceptual_layers(tiny).content[0]
    content = (
        (tiny.features(photo, layer)[layer] - tiny.features(made, layer)[layer]).square().mean()
    )
    torch.testing.assert_close(values["content"], content.view(1, 1), rtol=1e-3, atol=1e-6)


def test_the_shipped_network_has_learned_its_styles() -> None:
    """The embedded network, which taught it nothing, finds each picture nearer to its painting than the photograph was."""
    model = sl.load()
    values = sl.stylize(model, model.fit(sl.sample("chelsea"), 128)).values
    assert (values["style_after"] < 0.6 * values["style_before"]).all(), (
        values["style_before"],
        values["style_after"],
    )


def test_a_blend_is_one_of_the_styles(tiny: sl.Model, photo: Tensor) -> None:
    names = read_fixed_style_network("painters").names[:2]
    one, both, other = sl.stylize(
        tiny, photo, styles=(names[0], f"{names[0]}:1,{names[1]}:1", names[1])
    ).values["image"][0]
    assert (both - one).abs().mean() < (other - one).abs().mean()


def test_ones_own_network_has_no_painting_to_compare(
    tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    write_fixed_style_network(
        make_stylizer(0, 2, width=4, blocks=1), ["a", "b"], tmp_path / "own.safetensors"
    )
    result = sl.stylize(tiny, photo, painter=tmp_path / "own.safetensors")
    assert set(result.values) == {"image", "names", "content"}
    assert "Style loss" not in result.captions["stylize"]


def test_any_style_takes_pictures(tiny: sl.Model, photo: Tensor, tmp_path: Path) -> None:
    write_any_style_network(AdaINStylizer(sl.load()), tmp_path / "any.safetensors")
    images.write(smooth(side=60), tmp_path / "own.png")
    mixes = ("scream", str(tmp_path / "own.png"))
    result = sl.stylize(tiny, photo, painter=tmp_path / "any.safetensors", styles=mixes)
    network = read_style_network(tmp_path / "any.safetensors")
    for index, style in enumerate(mixes):
        torch.testing.assert_close(
            result.values["image"][:, index],
            restyle_images(network, photo, network.make_mix(style)),
        )


def test_refusals(tiny: sl.Model, photo: Tensor) -> None:
    for knobs, said in (
        ({"styles": ("screm",)}, "did you mean scream"),
        ({"painter": "paintres"}, "did you mean painters"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            sl.stylize(tiny, photo, **knobs)
    with pytest.raises(sl.SightlineError, match="too small for a style network"):
        sl.stylize(tiny, smooth(side=12))
