"""A watched forward pass against one whose every step is written out."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.layers.capture import (
    Capture,
    Layer,
    find_first_tensor,
    format_call_name,
    is_module_path,
)
from sightline.models.model import Model
from sightline.models.overrides.relu import backward


class Twice(nn.Module):
    """A convolution, a ReLU that is called twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, (3, 2))
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(x.mean((2, 3)) - 0.2)
        return self.fc(x)


NETWORK = Twice()
X = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
CONV = F.conv2d(X, NETWORK.conv.weight, NETWORK.conv.bias)
FIRST_RELU = CONV.clamp_min(0)
SECOND_RELU = (FIRST_RELU.mean((2, 3)) - 0.2).clamp_min(0)
LOGITS = SECOND_RELU @ NETWORK.fc.weight.T + NETWORK.fc.bias


class MarkedTensor(Tensor):
    """What is computed from one is one."""


def test_tensors_of_a_subclass_are_recorded_as_plain_ones() -> None:
    network = Twice()
    network.conv.weight = nn.Parameter(network.conv.weight.detach().as_subclass(MarkedTensor))
    capture = Capture(network, ["conv", "relu", "fc"], run_to_end=True)
    output = capture.run_forward_pass(lambda: network(X))
    assert {type(tensor) for tensor in capture.tensors.values()} == {Tensor}
    torch.testing.assert_close(capture.tensors["relu"], FIRST_RELU)
    gradients = torch.autograd.grad(output[:, 1].sum(), list(capture.tensors.values()))
    assert all(gradient.any() for gradient in gradients)


class ScaledTensor(Tensor):
    """Its convolutions are scaled by an attribute that their results have as well."""

    scale: float

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(output, ScaledTensor) and isinstance(args[0], ScaledTensor):
            output.scale = args[0].scale
            if func is F.conv2d:
                output = output * output.scale
        return output


class Scaled(Twice):
    """Two convolutions of tensors of that class."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Any = x.as_subclass(ScaledTensor)
        scaled.scale = 3.0
        maps = self.second(self.conv(scaled))
        return self.fc(maps.mean((2, 3)).as_subclass(Tensor))


@pytest.mark.parametrize("copied", [(), ("conv",)])
def test_the_network_goes_on_with_tensors_of_its_class(copied: tuple[str, ...]) -> None:
    network = Scaled()
    capture = Capture(network, ["conv", "second"], copied_calls=copied, run_to_end=True)
    leaf = X.clone().requires_grad_()
    output = capture.run_forward_pass(lambda: network(leaf))
    maps = 3 * F.conv2d(3 * CONV, network.second.weight)
    maps = maps + 3 * network.second.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(capture.tensors["conv"], 3 * CONV)
    torch.testing.assert_close(capture.tensors["second"], maps)
    torch.testing.assert_close(output.detach(), network(X))
    gradients = torch.autograd.grad(output[:, 1].sum(), list(capture.tensors.values()))
    assert all(gradient.any() for gradient in gradients)


class StoredElsewhere(Tensor):
    """A tensor without memory of its own, as all results of its operations are."""

    numbers: Tensor

    @staticmethod
    def wrap(numbers: Any) -> Any:
        if not isinstance(numbers, Tensor):
            return numbers
        wrapper: Any = Tensor._make_wrapper_subclass(
            StoredElsewhere, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype
        )
        wrapper.numbers = numbers
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def unwrap(value: Any) -> Any:
            return value.numbers if isinstance(value, StoredElsewhere) else value

        return tree_map(cls.wrap, func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {})))


def test_tensors_whose_numbers_are_elsewhere_are_refused() -> None:
    network = Twice()
    wrapped = StoredElsewhere.wrap(network.conv.weight.detach())
    network.conv.weight = nn.Parameter(wrapped, requires_grad=False)
    with torch.no_grad():
        assert type(network(X)) is StoredElsewhere
        with pytest.raises(SightlineError, match="of the class StoredElsewhere, whose numbers"):
            Capture(network, ["conv"]).run_forward_pass(lambda: network(X))
        model = Model(network, size=8)
        for method in (sl.activations, sl.saliency, sl.filters):
            with pytest.raises(SightlineError, match="make its weights plain tensors"):
                method(model, *([] if method is sl.filters else [torch.rand(1, 3, 8, 8)]))


def test_every_call_and_every_input_can_be_recorded() -> None:
    expected = {
        "conv": CONV,
        "conv:in": X,
        "relu": FIRST_RELU,
        "relu:in": CONV,
        "relu:1": SECOND_RELU,
        "fc:in": SECOND_RELU,
        "fc": LOGITS,
    }
    capture = Capture(NETWORK, expected, run_to_end=True)
    output = capture.run_forward_pass(lambda: NETWORK(X))
    torch.testing.assert_close(capture.tensors, expected)
    torch.testing.assert_close(output, LOGITS)


@pytest.mark.parametrize(
    ("wanted", "stops"), [(["conv"], True), (["relu"], True), (["relu:1"], True), (["fc"], True)]
)
def test_the_pass_stops_after_the_last_wanted_call(wanted: list[str], stops: bool) -> None:
    calls: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in NETWORK.named_children()
    ]
    output = Capture(NETWORK, wanted).run_forward_pass(lambda: NETWORK(X))
    for handle in handles:
        handle.remove()
    assert (output is None) == stops
    order = ["conv", "relu", "relu:1", "fc"]
    assert len(calls) == order.index(wanted[0]) + 1
    assert not any(module._forward_hooks for module in NETWORK.modules())


def test_a_leaf_ends_the_gradient() -> None:
    x = X.clone().requires_grad_()
    capture = Capture(NETWORK, ["relu"], run_to_end=True, leaf="relu")
    logits = capture.run_forward_pass(lambda: NETWORK(x))
    leaf = capture.tensors["relu"]
    assert leaf.is_leaf
    torch.testing.assert_close(leaf, FIRST_RELU)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), leaf, retain_graph=True)
    active = (SECOND_RELU > 0).float()
    expected = (active * NETWORK.fc.weight[2])[:, :, None, None].expand_as(FIRST_RELU) / 24
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(logits.sum(), x, allow_unused=True) == (None,)


def test_a_tensor_that_is_overwritten_is_noticed_and_can_be_copied() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).requires_grad_(False)
    expected = network[0](X)
    capture = Capture(network, ["0", "1"])
    capture.run_forward_pass(lambda: network(X))
    assert capture.find_overwritten_calls() == {"0"}
    assert not torch.equal(capture.tensors["0"], expected)

    capture = Capture(network, ["0", "1"], copied_calls={"0"})
    capture.run_forward_pass(lambda: network(X))
    assert capture.find_overwritten_calls() == set()
    assert torch.equal(capture.tensors["0"], expected)


def test_a_callback_sees_each_tensor_in_order_and_outside_of_rules() -> None:
    layers: list[str] = []

    def rectify(name: str, tensor: Tensor) -> None:
        layers.append(name)
        F.relu(tensor)

    capture = Capture(NETWORK, ["fc", "relu:1", "conv"], on_layer=rectify)
    with backward("guided") as rule:
        capture.run_forward_pass(lambda: NETWORK(X))
    assert layers == ["conv", "relu:1", "fc"]
    assert rule.count == 2, "the network's own calls, and not the callback's"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X, X),
        ((None, X, CONV), X),
        ([X], X),
        ({"scale": 2, "maps": X}, X),
        ((), None),
        (None, None),
        (3, None),
        ([[X]], None),
    ],
)
def test_the_first_tensor(value: Any, expected: Tensor | None) -> None:
    assert find_first_tensor(value) is expected


def test_names_of_calls() -> None:
    assert [format_call_name("a.relu", i) for i in range(3)] == ["a.relu", "a.relu:1", "a.relu:2"]


@pytest.mark.parametrize(
    ("shape", "is_spatial"),
    [
        ((4, 3, 5), True),
        ((4, 1, 2), True),
        ((4, 2, 1), True),
        ((4, 1, 1), False),
        ((54, 4), False),
        ((4,), False),
        ((4, 3, 5, 2), False),
    ],
)
def test_which_layers_are_spatial(shape: tuple[int, ...], is_spatial: bool) -> None:
    assert Layer("x", "Conv2d", shape).is_spatial == is_spatial


def test_hooks_are_gone_after_an_error() -> None:
    def fail() -> Callable[[], None]:
        raise ZeroDivisionError

    capture = Capture(NETWORK, ["conv", "fc:in"])
    with pytest.raises(ZeroDivisionError):
        capture.run_forward_pass(fail)
    for module in NETWORK.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class ByKeyword(Twice):
    """The linear layer is given its input by keyword, twice."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((2, 3))
        return self.fc(input=pooled) + self.fc(input=pooled.relu())


def test_inputs_by_keyword_and_of_every_call() -> None:
    network = ByKeyword()
    capture = Capture(network, ["fc:in", "fc:1:in"], run_to_end=True)
    capture.run_forward_pass(lambda: network(X))
    pooled = CONV.mean((2, 3))
    torch.testing.assert_close(capture.tensors["fc:in"], pooled)
    torch.testing.assert_close(capture.tensors["fc:1:in"], pooled.clamp_min(0))


class Choosing(nn.Module):
    """Bright images take another layer than dark ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dark = nn.Conv2d(3, 4, 3)
        self.bright = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.bright if x.mean() > 1 else self.dark
        return conv(x).mean((2, 3))


def test_a_layer_that_an_image_does_not_reach_is_named() -> None:
    model = Model(Choosing(), size=32)
    assert list(model.layers) == ["dark"]
    with pytest.raises(SightlineError, match="does not run layer dark for this image") as caught:
        model.features(torch.ones(1, 3, 32, 32), ["dark"])
    assert "\n" not in str(caught.value)


class Members(nn.Module):
    """Two members of an ensemble at once by `torch.vmap`, and a layer after them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.member = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.scales = nn.Parameter(torch.rand(2) + 0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.vmap(lambda scale: self.member(x * scale))(self.scales)
        return self.fc(maps.mean(0).mean((2, 3)))


def test_layers_inside_a_transform_are_left_alone() -> None:
    network = Members().eval()
    model = Model(network, size=(6, 7), mean=(0,) * 3, std=(1,) * 3)
    assert list(model.layers) == ["fc"]
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf)[:, 2].sum(), leaf)
    ours = X.clone().requires_grad_()
    scores = model.logits(ours)
    torch.testing.assert_close(scores, network(X).detach(), check_stride=False)
    (gradient,) = torch.autograd.grad(scores[:, 2].sum(), ours)
    torch.testing.assert_close(gradient, expected)


class WithoutTracking(Twice):
    """Computes its features in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            features = self.conv(x)
        return self.fc(features.clone().mean((2, 3)))


def test_tensors_of_inference_mode_are_recorded() -> None:
    model = Model(WithoutTracking().eval(), size=(6, 7), mean=(0,) * 3, std=(1,) * 3)
    torch.testing.assert_close(model.features(X, "conv")["conv"].clone(), CONV)


class OverwrittenUntracked(Twice):
    """Writes to its features in inference mode, which counts no writes."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        F.relu(maps, inplace=True)
        vectors = self.relu(maps.mean((2, 3)))
        vectors += 2
        return self.fc(vectors)


def test_what_inference_mode_overwrites_is_recorded_as_it_was() -> None:
    network = OverwrittenUntracked()
    capture = Capture(network, ["conv", "relu", "/relu"], run_to_end=True)
    output = capture.run_forward_pass(lambda: network(X))
    assert torch.equal(output, network(X))
    torch.testing.assert_close(capture.tensors["conv"], CONV)
    torch.testing.assert_close(capture.tensors["/relu"], FIRST_RELU)
    torch.testing.assert_close(capture.tensors["relu"], FIRST_RELU.mean((2, 3)))


class WithoutAttributes(nn.Module):
    """Has other attributes than modules have: any, or none that may be asked for."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a/relu": nn.ReLU()})
        vars(self)["answer"] = answer

    def __getattr__(self, name: str) -> Any:
        if name in vars(self)["_modules"]:
            return vars(self)["_modules"][name]
        answer = vars(self)["answer"]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("answer", [nn.ReLU(), KeyError("no such table")])
def test_module_paths_are_those_of_modules(answer: Any) -> None:
    network = WithoutAttributes(answer)
    for path in ("", "inner", "inner.a/relu"):
        assert is_module_path(network, path)
    for path in ("/relu", "relu", "inner/relu", "inner.a/relu.x", "inner.a"):
        assert not is_module_path(network, path)


@pytest.mark.skipif(sys.platform != "linux", reason="forks are tried on Linux only")
def test_a_forked_process_has_no_hooks_of_another_thread() -> None:
    network = OverwrittenUntracked()
    is_running = threading.Event()
    may_end = threading.Event()

    def wait_in_pass(_name: str, _tensor: Tensor) -> None:
        is_running.set()
        may_end.wait(20)

    capture = Capture(network, ["conv", "/relu"], on_layer=wait_in_pass)
    run = threading.Thread(target=lambda: capture.run_forward_pass(lambda: network(X)), daemon=True)
    run.start()
    assert is_running.wait(20)
    child = os.fork()
    if child == 0:
        hooks = [
            (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            for module in network.modules()
        ]
        os._exit(8 if any(hooks) else 7)
    _, status = os.waitpid(child, 0)
    may_end.set()
    run.join(20)
    assert os.waitstatus_to_exitcode(status) == 7
    assert set(capture.tensors) == {"conv", "/relu"}


def test_a_run_from_within_is_not_recorded() -> None:
    """To find the layout of an output may take another image through the same network."""
    capture = Capture(
        NETWORK, ["conv", "relu:1", "fc:in"], on_layer=lambda _name, _tensor: NETWORK(X[:1] + 1)
    )
    capture.run_forward_pass(lambda: NETWORK(X))
    assert list(capture.tensors) == ["conv", "relu:1", "fc:in"]
    torch.testing.assert_close(capture.tensors["conv"], CONV)
    torch.testing.assert_close(capture.tensors["relu:1"], SECOND_RELU)
    torch.testing.assert_close(capture.tensors["fc:in"], SECOND_RELU)
