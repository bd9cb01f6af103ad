"""Each published loss, written out as its authors do, equals weight × E."""

import pytest
import torch
from torch import Tensor

from sightline.perceptual import gram, gram_loss
from sightline.presets import PRESETS
from sightline.published import KNOWN


def grams(channels: int, seed: int) -> Tensor:
    return gram(torch.randn(1, channels, 3, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("channels", [(64, 128, 256, 512, 512), (96, 128)])
def test_presets_convert_what_their_authors_print(channels: tuple[int, ...]) -> None:
    for count in channels:
        one, two = grams(count, 0), grams(count, 1)
        loss, at = float(gram_loss(one, two)), channels.index(count)
        authors = 1e3 / count**2 * float((one - two).square().mean())
        johnson = 5.0 * float((one / count - two / count).square().mean())
        assert PRESETS["authors"].weights(channels)[at] * loss == pytest.approx(authors, rel=1e-4)
        assert PRESETS["johnson"].weights(channels)[at] * loss == pytest.approx(johnson, rel=1e-4)
        assert PRESETS["gatys"].weights(channels)[at] == pytest.approx(1e3 / len(channels))
    assert sum(PRESETS["crowson"].weights(channels)) == pytest.approx(1.0)
    assert PRESETS["crowson"].weights(channels)[0] == pytest.approx(4 * PRESETS["crowson"].weights(channels)[1])
    assert PRESETS["johnson"].both([2.0] * len(channels), channels)[0] == (2.0, pytest.approx(40 / channels[0] ** 2))


def test_published_weights_warn_of_another_network() -> None:
    assert PRESETS["relative"].warning(None) == ""
    for preset in PRESETS.values():
        if preset.network:
            own = [known for known in KNOWN if known.name == preset.network]
            assert len(own) == 1
            assert preset.warning(own[0]) == ""
            assert all(preset.network in preset.warning(other) for other in (None, *KNOWN) if other not in own)
