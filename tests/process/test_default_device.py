"""A default device that the user has set is that of the user's code, and of nothing else."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.process.default_device import make_tensors_on_cpu, use_default_device_of_user

IMAGE = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(3))
METHODS = (
    sl.activations,
    sl.gradcam,
    sl.guided,
    sl.occlusion,
    sl.predictions,
    sl.rise,
    sl.saliency,
    sl.segment,
)


@contextmanager
def set_default_device(device: str) -> Generator[None]:
    """As a script's first line does it. On the device meta nothing has numbers."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


class Noting(nn.Module):
    """Notes the device on which its new tensors are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)
        self.devices: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.devices.add(torch.empty(1).device.type)
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_methods_give_the_same_numbers(method: Callable[..., sl.Result]) -> None:
    model = sl.load(Noting(), size=(24, 32), device="cpu")
    expected = method(sl.load(Noting(), size=(24, 32), device="cpu"), IMAGE).values
    with set_default_device("meta"):
        values = method(model, IMAGE).values
        assert torch.get_default_device().type == "meta"
    assert model.network.devices == {"meta"}
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(values[name], value)


def test_what_a_model_finds_and_gives() -> None:
    network = Noting()
    expected = sl.load(network, size=(24, 32), device="cpu").logits(IMAGE)
    with set_default_device("meta"):
        model = sl.load(
            network,
            size=(24, 32),
            device="cpu",
            mean=[0, 0, 0],
            std=[1, 1, 1],
            preprocess=normalize,
        )
        assert model.output_kind == "logits"
        assert list(model.layers) == ["conv", "/relu", "fc"]
        assert model.landmarks["last_conv"] == "/relu"
        torch.testing.assert_close(model.logits(IMAGE), expected, check_stride=False)
        assert model.features(IMAGE, "/relu")["/relu"].any()
    assert model.network.devices == {"meta"}


def test_units_that_are_off_and_receptive_fields() -> None:
    model = sl.load(Noting(), size=(24, 32), device="cpu")
    references = IMAGE.flip(3)
    fills = ("zero", "mean", "resample")

    def measure() -> list[Tensor]:
        ablated = [model.ablated({"conv": 2}, fill=fill, images=references) for fill in fills]
        return [other.logits(IMAGE) for other in ablated]

    expected = measure()
    field = sl.receptive_field(model, "conv")
    other_model = sl.load(Noting(), size=(24, 32), device="cpu")
    with set_default_device("meta"):
        for logits, values in zip(measure(), expected, strict=True):
            torch.testing.assert_close(logits, values)
        assert sl.receptive_field(other_model, "conv") == field


def normalize(image: Tensor) -> Tensor:
    """ImageNet's normalization, by a function that relies on the device that was set."""
    assert torch.empty(1).device.type == "meta"
    mean = image.new_tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = image.new_tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (image - mean) / std


def test_contexts_inside_each_other() -> None:
    def get_device() -> str:
        return torch.empty(1).device.type

    with make_tensors_on_cpu(), use_default_device_of_user():
        assert get_device() == "cpu"
    with torch.device("meta"):
        for _ in range(2):
            assert get_device() == "meta"
            with make_tensors_on_cpu():
                assert get_device() == "cpu"
                with use_default_device_of_user(), make_tensors_on_cpu():
                    assert get_device() == "cpu"
                    with use_default_device_of_user():
                        assert get_device() == "meta"
                assert get_device() == "cpu"
