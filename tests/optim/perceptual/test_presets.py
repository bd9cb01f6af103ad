"""Each published loss, written out as its authors do, equals weight × E."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sightline.models.weights.published import KNOWN_PUBLISHED_WEIGHTS
from sightline.optim.perceptual.losses import compute_gram, compute_gram_loss
from sightline.optim.perceptual.presets import STYLE_PRESETS, StylePreset


def random_gram(channels: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return compute_gram(torch.randn(1, channels, 3, 4, generator=generator))


@pytest.mark.parametrize("channels", [(64, 128, 256, 512, 513), (96, 128)])
def test_presets_convert_what_their_authors_print(channels: tuple[int, ...]) -> None:
    for index, count in enumerate(channels):
        gram = random_gram(count, 0)
        target = random_gram(count, 1)
        loss = float(compute_gram_loss(gram, target))
        printed = {
            "authors": 1e3 / count**2 * float((gram - target).square().mean()),
            "johnson": 5.0 * float((gram / count - target / count).square().mean()),
            "gatys": 1e3 / len(channels) * loss,
        }
        for name, expected in printed.items():
            weight = STYLE_PRESETS[name].compute_layer_weights(channels)[index]
            assert weight * loss == pytest.approx(expected, rel=1e-4)


def test_crowsons_weights_fall_by_four_and_sum_to_one() -> None:
    weights = STYLE_PRESETS["crowson"].compute_layer_weights((64, 128, 256, 512, 512))
    assert sum(weights) == pytest.approx(1.0)
    for weight, next_weight in pairwise(weights):
        assert weight == pytest.approx(4 * next_weight)


def test_the_last_share_repeats_for_further_layers() -> None:
    preset = StylePreset(content=1.0, style=2.0, channel_power=0, layer_shares=(3.0, 1.0))
    assert preset.compute_layer_weights((8, 8, 8, 8)) == [1.5, 0.5, 0.5, 0.5]
    assert preset.compute_layer_weights((8,)) == [6.0]


def test_losses_are_paired_with_what_the_authors_print() -> None:
    pairs = STYLE_PRESETS["johnson"].pair_losses([2.0, 3.0], (64, 128))
    assert pairs == [(2.0, pytest.approx(40 / 64**2)), (3.0, pytest.approx(60 / 128**2))]


@pytest.mark.parametrize("name", STYLE_PRESETS)
def test_published_weights_warn_of_another_network(name: str) -> None:
    preset = STYLE_PRESETS[name]
    if not preset.published_network:
        assert preset.describe_network_mismatch(None) == ""
        return
    matching = [
        weights for weights in KNOWN_PUBLISHED_WEIGHTS if weights.name == preset.published_network
    ]
    assert len(matching) == 1
    assert preset.describe_network_mismatch(matching[0]) == ""
    for weights in (None, *KNOWN_PUBLISHED_WEIGHTS):
        if weights not in matching:
            warning = preset.describe_network_mismatch(weights)
            assert f"published for {preset.published_network}" in warning
