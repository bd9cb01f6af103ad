"""A request gives every maker of textures the same random numbers."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from sightline.methods.texture.request import TextureRequest


def make_request(seed: int) -> TextureRequest:
    model: Any = None
    return TextureRequest(
        exemplar=torch.zeros(3, 4, 5),
        size=(8, 9),
        window=3,
        tileable=False,
        guide=None,
        model=model,
        layers=(),
        steps=2,
        use_average_pooling=False,
        spectrum_weight=0.0,
        memory_gb=1.0,
        seed=seed,
        callback=None,
    )


def test_the_generator_starts_anew_each_time() -> None:
    request = make_request(3)
    first = torch.rand(4, generator=request.generator)
    assert torch.equal(torch.rand(4, generator=request.generator), first)
    assert torch.equal(torch.rand(4, generator=make_request(3).generator), first)
    assert not torch.equal(torch.rand(4, generator=make_request(4).generator), first)


def test_nobody_changes_a_request() -> None:
    with pytest.raises(FrozenInstanceError):
        make_request(0).seed = 1  # type: ignore[misc]
