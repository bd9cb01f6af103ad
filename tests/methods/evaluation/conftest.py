"""What the tests of the evaluation methods share."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.methods import load_methods
from sightline.registry.method import METHODS


@pytest.fixture(scope="session")
def wide_photo() -> Tensor:
    """A smooth random image, 1×3×32×44. Nobody may change it."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(coarse, size=(32, 44), mode="bicubic", align_corners=False)
    return image.clamp(0, 1)


@pytest.fixture
def replace_gradcam(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[sl.Model, Tensor], Tensor]], None]:
    """Makes gradcam return maps N×H×W of the test's own making, from the model and the images."""
    load_methods()

    def install(make_maps: Callable[[sl.Model, Tensor], Tensor]) -> None:
        def run(model: sl.Model, image: Tensor, *, label: int) -> sl.Result:
            return sl.Result({}, {"map": make_maps(model, image)})

        monkeypatch.setitem(METHODS, "gradcam", replace(METHODS["gradcam"], function=run))

    return install
