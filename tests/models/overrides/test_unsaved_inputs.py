"""Frozen convolutions and batch norms give torch's own numbers, and their input may be written to.

By public operations only.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, differentiate_twice, make_input
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.models.overrides.unsaved_inputs import UnsavedInputsMode, convolve_unsaved


def run_unsaved(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with UnsavedInputsMode():
        return layer(x)


def make_conv(**settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, **{"kernel_size": 3, **settings}).requires_grad_(False)


def make_batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4).requires_grad_(False)
    for index, tensor in enumerate(norm.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(make_input(4).abs() + 0.1 * index)
    return norm.eval()


LAYERS = {
    "plain": make_conv(),
    "uneven": make_conv(kernel_size=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "groups": make_conv(groups=2, bias=False),
    "same": make_conv(padding="same"),
    "reflected": make_conv(padding=1, padding_mode="reflect"),
    "double": make_conv().double(),
    "batch norm": make_batch_norm(),
}
OVERWRITABLE = ("plain", "uneven", "groups", "same", "batch norm")


def make_layer_input(name: str) -> Tensor:
    return make_input(2, 4, 9, 7).to(torch.float64 if name == "double" else torch.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_the_numbers_are_torchs(name: str) -> None:
    layer = LAYERS[name]
    x = make_layer_input(name)
    derivatives = differentiate_twice(lambda x: run_unsaved(layer, x), x)
    for derivative, expected in zip(derivatives, differentiate_twice(layer, x), strict=True):
        assert_close(derivative, expected)


@pytest.mark.parametrize("name", OVERWRITABLE)
def test_the_input_may_be_overwritten(name: str) -> None:
    layer = LAYERS[name]
    x = make_layer_input(name).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    hidden = x * 1
    output = run_unsaved(layer, hidden)
    hidden.zero_()
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    assert_close(gradient, expected)


class BackwardRecorder(TorchDispatchMode):
    """Notes the strides of what the backward pass of a convolution takes for its input."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.strides.append(args[1].stride())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_what_stands_for_the_input_lies_in_memory_as_it_did(
    memory_format: torch.memory_format,
) -> None:
    # Anything else would be copied into that layout in each layer and for each pass.
    leaf = make_layer_input("plain").contiguous(memory_format=memory_format).requires_grad_()
    output = run_unsaved(make_conv(), leaf).square().sum()
    with BackwardRecorder() as recorder:
        torch.autograd.grad(output, leaf)
    assert recorder.strides == [leaf.stride()]


def test_a_trained_weight_gets_its_gradient() -> None:
    layer = make_conv().requires_grad_()
    x = make_layer_input("plain").requires_grad_()
    gradients = torch.autograd.grad(run_unsaved(layer, x).square().sum(), [x, layer.weight])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    for gradient, own in zip(gradients, expected, strict=True):
        assert_close(gradient, own)


def test_the_arguments_may_be_named() -> None:
    x = make_layer_input("plain").requires_grad_()
    layer = make_conv()
    output = convolve_unsaved(input=x, weight=layer.weight, padding=1, stride=2)
    expected = F.conv2d(x, layer.weight, padding=1, stride=2)
    assert_close(output.detach(), expected.detach())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["plain", "batch norm"])
def test_transformed_functions_are_torchs(name: str) -> None:
    layer = LAYERS[name]
    x = make_layer_input(name)
    direction = make_input(2, 4, 7, 9).mT
    with forward_ad.dual_level():
        output = run_unsaved(layer, forward_ad.make_dual(x, direction))
        tangent = forward_ad.unpack_dual(output).tangent
    _, expected = torch.func.jvp(layer, (x,), (direction,))
    assert_close(tangent, expected)

    def score(x: Tensor) -> Tensor:
        return run_unsaved(layer, x).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    assert_close(torch.func.grad(score)(x), expected)
    batched = torch.func.vmap(torch.func.grad(score))(x[:, None])
    assert_close(batched[:, 0], expected)
