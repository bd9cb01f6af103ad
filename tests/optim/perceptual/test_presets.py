"""Each published loss, written out as its authors do, equals weight × E."""

import pytest
import torch
from torch import Tensor

from sightline.models.weights.published import KNOWN_PUBLISHED_WEIGHTS
from sightline.optim.perceptual.losses import compute_gram, compute_gram_loss
from sightline.optim.perceptual.presets import STYLE_PRESETS


def grams(channels: int, seed: int) -> Tensor:
    return compute_gram(
        torch.randn(1, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    )


@pytest.mark.parametrize("channels", [(64, 128, 256, 512, 512), (96, 128)])
def test_presets_convert_what_their_authors_print(channels: tuple[int, ...]) -> None:
    for count in channels:
        one, two = grams(count, 0), grams(count, 1)
        loss, at = float(compute_gram_loss(one, two)), channels.index(count)
        authors = 1e3 / count**2 * float((one - two).square().mean())
        johnson = 5.0 * float((one / count - two / count).square().mean())
        assert STYLE_PRESETS["authors"].compute_layer_weights(channels)[at] * loss == pytest.approx(
            authors, rel=1e-4
        )
        assert STYLE_PRESETS["johnson"].compute_layer_weights(channels)[at] * loss == pytest.approx(
            johnson, rel=1e-4
        )
        assert STYLE_PRESETS["gatys"].compute_layer_weights(channels)[at] == pytest.approx(
            1e3 / len(channels)
        )
    assert sum(STYLE_PRESETS["crowson"].compute_layer_weights(channels)) == pytest.approx(1.0)
    assert STYLE_PRESETS["crowson"].compute_layer_weights(channels)[0] == pytest.approx(
        4 * STYLE_PRESETS["crowson"].compute_layer_weights(channels)[1]
    )
    assert STYLE_PRESETS["johnson"].pair_losses([2.0] * len(channels), channels)[0] == (
        2.0,
        pytest.approx(40 / channels[0] ** 2),
    )


def test_published_weights_warn_of_another_network() -> None:
    assert STYLE_PRESETS["relative"].describe_network_mismatch(None) == ""
    for preset in STYLE_PRESETS.values():
        if preset.published_network:
            own = [
                known for known in KNOWN_PUBLISHED_WEIGHTS if known.name == preset.published_network
            ]
            assert len(own) == 1
            assert preset.describe_network_mismatch(own[0]) == ""
            assert all(
                preset.published_network in preset.describe_network_mismatch(other)
                for other in (None, *KNOWN_PUBLISHED_WEIGHTS)
                if other not in own
            )
