"""Adaptive instance norm, and the network for any style."""

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.generators.architectures.adain import (
    AdaINStylizer,
    apply_adain,
    compute_channel_statistics,
)


@pytest.fixture(scope="module")
def network() -> AdaINStylizer:
    return AdaINStylizer(sl.load()).eval()


@pytest.fixture
def undecoded(network: AdaINStylizer, monkeypatch: pytest.MonkeyPatch) -> AdaINStylizer:
    """The network without its decoder, which hides differences while it is untrained."""
    monkeypatch.setattr(network, "decode_features", lambda features, height, width: features)
    return network


def make_features(seed: int, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 5, 6, 7, generator=random) + seed


def make_image(height: int, width: int, seed: int) -> Tensor:
    return smooth(side=max(height, width), seed=seed)[..., :height, :width]


# ── statistics ──


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_mean_and_deviation_over_positions(layout: torch.memory_format) -> None:
    features = make_features(1, 2.0)
    mean, deviation = compute_channel_statistics(features.contiguous(memory_format=layout))
    assert mean.shape == deviation.shape == (2, 5, 1, 1)
    for n in range(2):
        for c in range(5):
            values = features[n, c].flatten()
            expected_mean = values.sum() / 42
            variance = (values - expected_mean).square().sum() / 42
            torch.testing.assert_close(mean[n, c, 0, 0], expected_mean)
            torch.testing.assert_close(deviation[n, c, 0, 0], (variance + 1e-5).sqrt())


def test_adain_is_instance_norm_with_the_styles_statistics() -> None:
    content, style = make_features(1), make_features(2, 3.0)
    output = apply_adain(content, compute_channel_statistics(style))
    for n in range(2):
        for c in range(5):
            normalized = nn.functional.instance_norm(content[n : n + 1, c : c + 1])[0, 0]
            expected = normalized * style[n, c].std(correction=0) + style[n, c].mean()
            torch.testing.assert_close(output[n, c], expected, rtol=1e-3, atol=1e-3)


def test_the_contents_own_statistics_change_nothing() -> None:
    content = make_features(1)
    output = apply_adain(content, compute_channel_statistics(content))
    torch.testing.assert_close(output, content, rtol=1e-4, atol=1e-4)


def test_the_size_of_the_style_does_not_matter() -> None:
    content, style = make_features(1), make_features(2, 3.0)
    output = apply_adain(content, compute_channel_statistics(style))
    repeated = compute_channel_statistics(style.repeat(1, 1, 2, 3))
    torch.testing.assert_close(apply_adain(content, repeated), output, rtol=1e-3, atol=1e-3)


# ── network ──


@torch.no_grad()
def test_the_contents_own_style_and_strength_0_change_no_features(
    undecoded: AdaINStylizer,
) -> None:
    image, style = make_image(48, 64, seed=3), make_image(50, 40, seed=4)
    features = undecoded.encode_image(image)
    own_mix = undecoded.make_style_row(image)
    torch.testing.assert_close(undecoded(image, own_mix), features, rtol=1e-3, atol=1e-3)
    weak_mix = undecoded.make_style_row(style, 0.0)
    torch.testing.assert_close(undecoded(image, weak_mix), features, rtol=1e-4, atol=1e-5)
    stylized = undecoded(image, undecoded.make_style_row(style))
    assert (stylized - features).abs().mean() > 0.1 * features.abs().mean()


@torch.no_grad()
def test_the_decoder_takes_features_in_units_of_the_scale(network: AdaINStylizer) -> None:
    features = network.encode_image(make_image(48, 64, seed=3))
    image = network.decode_features(features, 48, 64)
    assert torch.equal(image, network.decoder(features))
    network.scale.fill_(2.0)
    torch.testing.assert_close(network.decode_features(2 * features, 48, 64), image)
    network.scale.fill_(1.0)


@torch.no_grad()
def test_a_row_holds_mean_deviation_and_strength(undecoded: AdaINStylizer) -> None:
    """Each image of a batch takes its own row."""
    styles = torch.cat([make_image(60, 52, seed=seed) for seed in (4, 5)])
    strength = torch.tensor([0.25, 1.0])
    mix = undecoded.make_style_row(styles, strength)
    features = undecoded.encode_image(styles)
    channels = features.shape[1]
    assert mix.shape == (2, 2 * channels + 1)
    torch.testing.assert_close(mix[:, :channels], features.mean((2, 3)), rtol=1e-4, atol=1e-5)
    deviation = (features.var((2, 3), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(mix[:, channels:-1], deviation, rtol=1e-4, atol=1e-5)
    assert torch.equal(mix[:, -1], strength)

    images = torch.cat([make_image(48, 64, seed=seed) for seed in (6, 7)])
    content = undecoded.encode_image(images)
    output = undecoded(images, mix)
    for index, share in enumerate((0.25, 1.0)):
        own_content, own_style = content[index : index + 1], features[index : index + 1]
        stylized = apply_adain(own_content, compute_channel_statistics(own_style))
        expected = (1 - share) * own_content + share * stylized
        torch.testing.assert_close(output[index : index + 1], expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (53, 70), (16, 90)])
def test_images_of_any_size_keep_it(network: AdaINStylizer, height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    mix = network.make_style_row(make_image(40, 48, seed=0))
    assert network(image, mix).shape == image.shape


@torch.no_grad()
@pytest.mark.parametrize(("name", "stride"), [("squeezenet1_0", 4), ("vgg16", 8)])
def test_encoders_that_lose_border_positions_are_resized(name: str, stride: int) -> None:
    network = AdaINStylizer(sl.load(name, weights="random"))
    image = make_image(70, 61, seed=0)
    mix = network.make_style_row(make_image(48, 40, seed=1))
    assert network(image, mix).shape == image.shape
    assert (network.stride, network.needs_resize) == (stride, True)


def test_another_network_can_be_no_encoder(tiny: sl.Model) -> None:
    message = "Sequential can't be the encoder of a network for any style; choose from sightnet"
    with pytest.raises(sl.SightlineError, match=message):
        AdaINStylizer(tiny)
