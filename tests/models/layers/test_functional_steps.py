"""Functional steps against the same network spelt with modules, and against explicit operations."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sightline as sl
from sightline.models.model import Model

IMAGES = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))


class Spelled(nn.Module):
    """A convolution, a rectifier in some spelling, a mean and a linear layer."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rectify(self.conv(x)).mean((2, 3)))


def load(network: nn.Module) -> Model:
    return Model(network.eval(), size=32)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: x.relu_(),
    "flag": lambda x: F.relu(x, inplace=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_relu_gives_the_same_grad_cam(spelling: str) -> None:
    by_module = load(Spelled(nn.ReLU()))
    by_function = load(Spelled(SPELLINGS[spelling]))
    assert by_module.landmarks["last_conv"] == "rectify"
    assert by_function.landmarks["last_conv"] == "/relu"
    expected = sl.gradcam(by_module, IMAGES, label=1).values["cam"]
    actual = sl.gradcam(by_function, IMAGES, label=1).values["cam"]
    assert torch.allclose(actual, expected, atol=1e-6)
    assert expected.any()


def test_a_step_is_recorded_with_its_gradient() -> None:
    model = load(Spelled(F.relu))
    conv = model.features(IMAGES, "conv")["conv"]
    outputs = model.run(IMAGES, ["/relu", "logits"], leaf="/relu")
    assert torch.equal(outputs["/relu"], conv.clamp(min=0))
    (gradient,) = torch.autograd.grad(outputs["logits"][:, 2].sum(), outputs["/relu"])
    positions = conv.shape[2] * conv.shape[3]
    expected = model.network.fc.weight[2][None, :, None, None] / positions
    assert torch.allclose(gradient, expected.expand_as(gradient))


STEPS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu": ("GELU", F.gelu),
    "silu": ("SiLU", F.silu),
    "hardswish": ("Hardswish", F.hardswish),
    "leaky_relu": ("LeakyReLU", F.leaky_relu),
    "elu": ("ELU", F.elu),
    "relu6": ("ReLU6", F.relu6),
    "max_pool2d": ("MaxPool2d", lambda x: F.max_pool2d(x, 2)),
    "avg_pool2d": ("AvgPool2d", lambda x: F.avg_pool2d(x, 3, 2)),
    "adaptive_avg_pool2d": ("AdaptiveAvgPool2d", lambda x: F.adaptive_avg_pool2d(x, 3)),
    "cat": ("Cat", lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)),
    "add": ("Add", lambda x: x + x.flip(1)),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_kind_of_step(step: str) -> None:
    kind, function = STEPS[step]
    model = load(Spelled(function))
    layer = model.layers[f"/{step}"]
    assert (layer.kind, layer.step) == (kind, step)
    assert list(model.layers) == ["conv", f"/{step}", "fc"]
    with torch.no_grad():
        features = model.features(IMAGES, ["conv", f"/{step}"])
        expected = function(features["conv"])
    assert torch.equal(features[f"/{step}"], expected)
    assert isinstance(model.module(f"/{step}"), Spelled)


class Block(nn.Module):
    """A residual block that works in place, with two rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(F.relu(x) - 0.1))
        y += x
        return y


class Residual(nn.Module):
    """Two blocks, the second one recomputed in the backward pass if that is asked for."""

    def __init__(self, *, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.act = nn.ReLU()
        self.fc = nn.Linear(4, 5)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        if self.recompute:
            x = checkpoint(self.blocks[1], x, use_reentrant=False)
        else:
            x = self.blocks[1](x)
        return self.fc(self.act(x + 1).mean((2, 3)))


def test_names_count_the_steps_of_a_module() -> None:
    """A constant that is added is no step, and nor is what nn.ReLU calls."""
    model = load(Residual())
    assert list(model.layers) == [
        "stem",
        "blocks.0/relu",
        "blocks.0/relu:1",
        "blocks.0.conv",
        "blocks.0/add",
        "blocks.0",
        "blocks.1/relu",
        "blocks.1/relu:1",
        "blocks.1.conv",
        "blocks.1/add",
        "blocks.1",
        "act",
        "fc",
    ]
    with torch.no_grad():
        names = ["stem", "blocks.0/relu", "blocks.0/relu:1:in", "blocks.0.conv", "blocks.0/add"]
        features = model.run(IMAGES, names)
    assert torch.equal(features["blocks.0/relu"], features["stem"].clamp(min=0))
    lowered = features["blocks.0/relu"] - 0.1
    assert torch.equal(features["blocks.0/relu:1:in"], lowered)
    conv = model.network.blocks[0].conv
    convolved = F.conv2d(lowered.clamp(min=0), conv.weight, conv.bias, padding=1)
    assert torch.allclose(features["blocks.0.conv"], convolved, atol=1e-6), "before the sum"
    assert torch.allclose(features["blocks.0/add"], convolved + features["stem"], atol=1e-6)


def test_steps_that_are_computed_again_are_counted_once() -> None:
    plain = load(Residual())
    recomputed = load(Residual(recompute=True))
    assert list(recomputed.layers) == list(plain.layers)
    gradients: list[Tensor] = []
    for model in (plain, recomputed):
        image = IMAGES.clone().requires_grad_()
        outputs = model.run(image, ["blocks.1/relu", "logits"])
        (gradient,) = torch.autograd.grad(outputs["logits"].sum(), outputs["blocks.1/relu"])
        gradients.append(gradient)
    assert torch.allclose(gradients[0], gradients[1])
    assert gradients[0].any()


def test_a_module_may_be_called_as_a_step_is() -> None:
    network = nn.Sequential()
    network.add_module("a", nn.Conv2d(3, 4, 3))
    network.add_module("a/relu", nn.ReLU())
    model = load(network)
    assert list(model.layers) == ["a", "a/relu"]
    assert isinstance(model.module("a/relu"), nn.ReLU)
    with torch.no_grad():
        features = model.run(IMAGES, ["a", "a/relu"])
    assert torch.equal(features["a/relu"], features["a"].clamp(min=0))


def test_ordinary_runs_see_no_function_mode() -> None:
    stack_sizes: list[int] = []

    class Watched(Spelled):
        def forward(self, x: Tensor) -> Tensor:
            stack_sizes.append(torch._C._len_torch_function_stack())
            return super().forward(x)

    model = load(Watched(F.relu))
    assert model.layers
    assert model.labels
    with torch.no_grad():
        stack_sizes.clear()
        model.run(IMAGES, ["conv", "logits"])
        model.run(IMAGES, ["/relu", "logits"])
    assert stack_sizes[1] == stack_sizes[0] + 1
    assert not any(module._forward_hooks for module in model.network.modules())


def test_what_a_callback_computes_is_no_step_of_the_network() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x)).mean((2, 3))

    model = load(Twice())
    names = ["block", "block/relu:1"]
    with torch.no_grad():
        expected = model.run(IMAGES, names)
        seen = model.run(IMAGES, names, on_layer=lambda _, tensor: F.relu(tensor * 0 + 7))
    for name in names:
        assert torch.equal(seen[name], expected[name])


class Parallel(nn.Module):
    """Two branches in threads of their own, and steps after: each begins before the other ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        has_gradient = torch.is_grad_enabled()
        first_began, second_began, first_ended = [threading.Event() for _ in range(3)]

        def wait_in_first(_module: nn.Module, _inputs: object) -> None:
            first_began.set()
            assert second_began.wait(20)

        def wait_in_second(_module: nn.Module, _inputs: object) -> None:
            second_began.set()
            assert first_ended.wait(20)

        def run_first() -> Tensor:
            with torch.set_grad_enabled(has_gradient):
                output = self.first(x)
            first_ended.set()
            return output

        def run_second() -> Tensor:
            assert first_began.wait(20)
            with torch.set_grad_enabled(has_gradient):
                return self.second(x)

        hooks = [
            self.first.register_forward_pre_hook(wait_in_first),
            self.second.register_forward_pre_hook(wait_in_second),
        ]
        with ThreadPoolExecutor(2) as pool:
            branches = [pool.submit(run_first), pool.submit(run_second)]
        for hook in hooks:
            hook.remove()
        first, second = [branch.result() for branch in branches]
        return self.fc(F.relu(first + second).mean((2, 3)))


def test_steps_beside_threads_of_the_network() -> None:
    network = Parallel()
    model = load(network)
    assert list(model.layers) == ["first", "second", "/add", "/relu", "fc"]
    features = model.features(IMAGES, list(model.layers))
    normalized = model.normalize(IMAGES)
    total = network.first(normalized) + network.second(normalized)
    torch.testing.assert_close(features["/add"], total, check_stride=False)
    torch.testing.assert_close(features["/relu"], F.relu(total), check_stride=False)


class Catching(Spelled):
    """Goes on without a module that refuses its input."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        try:
            self.fc(maps)
        except RuntimeError:
            maps = self.rectify(maps)
        return self.fc(maps.mean((2, 3)))


def test_steps_after_a_module_that_never_began() -> None:
    network = Catching(F.relu)

    def refuse_maps(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 4:
            raise RuntimeError("no maps")

    network.fc.register_forward_pre_hook(refuse_maps)
    assert list(load(network).layers) == ["conv", "/relu", "fc"]
