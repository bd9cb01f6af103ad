"""Vectors that are hard to compare in low precision."""

import pytest
import torch
from torch import Tensor

COUNT = 300
DIMENSIONS = 33


def make_vectors(kind: str) -> Tensor:
    """300×33 vectors of one of the kinds below."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(COUNT, DIMENSIONS, generator=generator)
    group = torch.randint(5, (COUNT,), generator=generator)
    is_giant = torch.arange(COUNT) == 70
    return {
        "normal": normal,
        "near ties": torch.ones(COUNT, DIMENSIONS) + 1e-4 * normal,
        "duplicates": normal[:5][group],
        "alike": torch.ones(COUNT, DIMENSIONS),
        "zeros": normal * (group > 1)[:, None],
        "sizes": normal * 10.0 ** (8 * group - 16)[:, None],
        "one giant": normal * torch.where(is_giant, 1e12, 1)[:, None],
        "huge": normal / normal.abs().max() * 3e38,
        "tiny": normal * 1e-30,
        "denormal": normal * 1e-40,
        "far away": 1e6 + normal,
        "no negatives": normal.relu(),
    }[kind]


KINDS = (
    "normal",
    "near ties",
    "duplicates",
    "alike",
    "zeros",
    "sizes",
    "one giant",
    "huge",
    "tiny",
    "denormal",
    "far away",
    "no negatives",
)


@pytest.fixture
def normal_vectors() -> Tensor:
    """300×33 normal random vectors."""
    return make_vectors("normal")


@pytest.fixture(params=KINDS)
def awkward_vectors(request: pytest.FixtureRequest) -> Tensor:
    """300×33 vectors of each kind in turn."""
    return make_vectors(request.param)
