"""Adaptive instance norm and the decoder for any style."""

import pytest
import torch
from conftest import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.networks.adain import AnyStyle, adain, statistics
from sightline.networks.photos import Photos


def features(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(seed)) * scale + seed


@pytest.fixture(scope="module")
def engine() -> AnyStyle:
    return AnyStyle(sl.load())


def photos(seed: int) -> Photos:
    return Photos((smooth(6, 40, seed) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())


def test_it_is_instance_norm_with_the_styles_moments() -> None:
    content, style = features(1), features(2, 3.0)
    found, expected = adain(content, style), torch.empty_like(content)
    for n in range(2):
        for c in range(5):
            mean, deviation = style[n, c].mean(), style[n, c].std(correction=0)
            expected[n, c] = nn.functional.instance_norm(content[n : n + 1, c : c + 1])[0, 0] * deviation + mean
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for one, other in zip(statistics(found), statistics(style), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(adain(content, content), content, rtol=1e-4, atol=1e-4)
    wider = style.repeat(1, 1, 2, 3)
    torch.testing.assert_close(adain(content, wider), found, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_content_as_its_own_style_is_the_decoders_reconstruction(engine: AnyStyle) -> None:
    image = smooth(side=64, seed=3)
    deep = engine.layers[-1]
    plain = engine.decoded(engine.encoded(image)[deep], 64, 64)
    torch.testing.assert_close(engine.restyled(image, image), plain, rtol=1e-3, atol=1e-3)
    other = smooth(side=50, seed=4)
    torch.testing.assert_close(engine.restyled(image, other, strength=0.0), plain)
    assert (engine.restyled(image, other) - plain).abs().mean() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (53, 70)])
def test_any_size(engine: AnyStyle, height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert engine.restyled(image, smooth(side=48)).shape == image.shape


def test_it_learns_and_leaves_the_encoder_alone() -> None:
    engine = AnyStyle(sl.load(), seed=1)
    before = {name: value.clone() for name, value in engine.model.body.state_dict().items()}
    told = engine.learn(photos(0), photos(50), steps=12, size=32, batch=2, lr=3e-3)
    assert sum(told[-3:]) < 0.8 * sum(told[:3])
    assert all(torch.equal(value, before[name]) for name, value in engine.model.body.state_dict().items())


def test_other_encoders_are_refused(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="no encoder for any style in Sequential; choose from sightnet"):
        AnyStyle(tiny)
