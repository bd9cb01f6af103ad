"""Each rule against a backward pass in loops, for every spelling of ReLU, and against captum."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn

from sightline.models.overrides.relu import backward, find_relu_ceiling

pytestmark = pytest.mark.usefixtures("fast_or_portable")

RULES = ("gradient", "deconvnet", "guided")


@dataclass
class Conv:
    """Convolution, stride 1: `weight` out×in×k×k."""

    weight: np.ndarray
    bias: np.ndarray
    padding: int

    def forward(self, x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (self.padding,) * 2, (self.padding,) * 2))
        out, _, k, _ = self.weight.shape
        rows, columns = padded.shape[1] - k + 1, padded.shape[2] - k + 1
        y = np.zeros((out, rows, columns))
        for o in range(out):
            for r in range(rows):
                for c in range(columns):
                    y[o, r, c] = (
                        padded[:, r : r + k, c : c + k] * self.weight[o]
                    ).sum() + self.bias[o]
        self.shape = padded.shape
        return y

    def backward(self, g: np.ndarray) -> np.ndarray:
        padded = np.zeros(self.shape)
        k = self.weight.shape[2]
        for o in range(g.shape[0]):
            for r in range(g.shape[1]):
                for c in range(g.shape[2]):
                    padded[:, r : r + k, c : c + k] += g[o, r, c] * self.weight[o]
        p = self.padding
        return padded[:, p : self.shape[1] - p, p : self.shape[2] - p]


class Pool:
    """2×2 maximum: the gradient goes through the switch, as in Zeiler & Fergus."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        self.switches = {}
        y = np.zeros((x.shape[0], x.shape[1] // 2, x.shape[2] // 2))
        for o in range(y.shape[0]):
            for r in range(y.shape[1]):
                for c in range(y.shape[2]):
                    cells = [(2 * r + i, 2 * c + j) for i in (0, 1) for j in (0, 1)]
                    best = max(cells, key=lambda cell: x[o, cell[0], cell[1]])
                    self.switches[o, r, c] = best
                    y[o, r, c] = x[o, best[0], best[1]]
        return y

    def backward(self, g: np.ndarray) -> np.ndarray:
        x = np.zeros(self.shape)
        for (o, r, c), (i, j) in self.switches.items():
            x[o, i, j] += g[o, r, c]
        return x


@dataclass
class Rectifier:
    rule: str
    high: float = np.inf

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return np.minimum(np.maximum(x, 0), self.high)

    def backward(self, g: np.ndarray) -> np.ndarray:
        result = np.zeros_like(g)
        for index in np.ndindex(g.shape):
            active = 0 < self.x[index] < self.high
            positive = g[index] > 0
            passes = {"gradient": active, "deconvnet": positive, "guided": active and positive}[
                self.rule
            ]
            result[index] = g[index] if passes else 0
        return result


@dataclass
class Linear:
    weight: np.ndarray
    bias: np.ndarray

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        return self.weight @ x.reshape(-1) + self.bias

    def backward(self, g: np.ndarray) -> np.ndarray:
        return (self.weight.T @ g).reshape(self.shape)


def numbers(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


@cache
def literal(
    label: int, rule: str, scale: float = 1, high: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and the rule's gradient of `picture(scale)`, whatever the spelling of the ReLU."""
    network = Chain(F.relu, F.relu, F.relu)
    chain = [
        Conv(numbers(network.conv1.weight), numbers(network.conv1.bias), 1),
        Rectifier(rule, high),
        Pool(),
        Conv(numbers(network.conv2.weight), numbers(network.conv2.bias), 0),
        Rectifier(rule, high),
        Linear(numbers(network.fc1.weight), numbers(network.fc1.bias)),
        Rectifier(rule, high),
        Linear(numbers(network.fc2.weight), numbers(network.fc2.bias)),
    ]
    x = picture(scale)[0].numpy()
    for layer in chain:
        x = layer.forward(x)
    g = np.zeros_like(x)
    g[label] = 1
    for layer in reversed(chain):
        g = layer.backward(g)
    return x, g


class Chain(nn.Module):
    """conv, ReLU, max-pool, conv, ReLU, linear, ReLU, linear, with a ReLU spelled in some way."""

    def __init__(self, *rectifiers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc1 = nn.Linear(30, 12)
        self.fc2 = nn.Linear(12, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        self.rectifiers = rectifiers
        self.modules_ = nn.ModuleList(
            {id(r): r for r in rectifiers if isinstance(r, nn.Module)}.values()
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.rectifiers
        x = F.max_pool2d(first(self.conv1(x)), 2)
        x = second(self.conv2(x)).flatten(1)
        return self.fc2(third(self.fc1(x)))


def in_place(call: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A spelling whose returned value is ignored: the network goes on with the changed tensor."""

    def rectify(x: Tensor) -> Tensor:
        call(x)
        return x

    return rectify


SHARED = nn.ReLU()
SPELLINGS: dict[str, Callable[[], tuple[Callable[[Tensor], Tensor], ...]]] = {
    "nn.ReLU": lambda: (nn.ReLU(), nn.ReLU(), nn.ReLU()),
    "nn.ReLU(inplace)": lambda: (
        nn.ReLU(inplace=True),
        nn.ReLU(inplace=True),
        nn.ReLU(inplace=True),
    ),
    "one shared nn.ReLU": lambda: (SHARED,) * 3,
    "F.relu": lambda: (F.relu,) * 3,
    "F.relu(inplace=True)": lambda: (lambda x: F.relu(x, inplace=True),) * 3,
    "F.relu(x, True)": lambda: (lambda x: F.relu(x, True),) * 3,
    "F.relu(input=x)": lambda: (lambda x: F.relu(input=x),) * 3,
    "F.relu_": lambda: (F.relu_,) * 3,
    "torch.relu": lambda: (torch.relu,) * 3,
    "torch.relu_": lambda: (torch.relu_,) * 3,
    "x.relu()": lambda: (lambda x: x.relu(),) * 3,
    "x.relu_()": lambda: (lambda x: x.relu_(),) * 3,
    "x.relu_() as a statement": lambda: (in_place(lambda x: x.relu_()),) * 3,
    "F.relu(inplace=True) as a statement": lambda: (
        (in_place(lambda x: F.relu(x, inplace=True)),) * 3
    ),
    "nn.ReLU(inplace) as a statement": lambda: (in_place(nn.ReLU(inplace=True)),) * 3,
    "a mixture": lambda: (torch.relu, nn.ReLU(inplace=True), lambda x: x.relu_()),
}
SPELLINGS_6: dict[str, Callable[[], tuple[Callable[[Tensor], Tensor], ...]]] = {
    "nn.ReLU6": lambda: (nn.ReLU6(), nn.ReLU6(), nn.ReLU6()),
    "nn.ReLU6(inplace)": lambda: (
        nn.ReLU6(inplace=True),
        nn.ReLU6(inplace=True),
        nn.ReLU6(inplace=True),
    ),
    "F.relu6": lambda: (F.relu6,) * 3,
    "F.relu6(inplace=True)": lambda: (lambda x: F.relu6(x, inplace=True),) * 3,
    "F.relu6(inplace=True) as a statement": lambda: (
        (in_place(lambda x: F.relu6(x, inplace=True)),) * 3
    ),
}


def picture(scale: float = 1.0) -> Tensor:
    return scale * torch.rand(
        1, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def run_with_rule(
    network: nn.Module, image: Tensor, label: int, rule: str
) -> tuple[Tensor, Tensor, int]:
    """Logits, gradient and the number of ReLUs under the rule."""
    x = image.clone().requires_grad_()
    with backward(rule) as context:
        logits = network(x)
    (gradient,) = torch.autograd.grad(logits[:, label].sum(), x)
    return logits.detach(), gradient, context.count


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_follows_the_rule(spelling: str, rule: str) -> None:
    network = Chain(*SPELLINGS[spelling]())
    for label in range(3):
        logits, gradient, count = run_with_rule(network, picture(), label, rule)
        expected_logits, expected = literal(label, rule)
        assert np.allclose(logits[0].numpy(), expected_logits, atol=1e-12)
        assert np.abs(expected).max() > 1e-3
        assert np.allclose(gradient[0].numpy(), expected, atol=1e-12)
        assert count == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLINGS_6)
def test_relu6_is_closed_above_too(spelling: str, rule: str) -> None:
    network = Chain(*SPELLINGS_6[spelling]())
    logits, gradient, count = run_with_rule(network, picture(4), 1, rule)
    expected_logits, expected = literal(1, rule, 4, 6)
    unbounded = literal(1, rule, 4)[0]
    assert not np.allclose(expected_logits, unbounded), "the picture must drive some unit over 6"
    assert np.allclose(logits[0].numpy(), expected_logits, atol=1e-12)
    assert np.allclose(gradient[0].numpy(), expected, atol=1e-12)
    assert count == 3


def test_the_three_rules_differ_where_there_is_relu() -> None:
    network = Chain(F.relu, F.relu, F.relu)
    gradients = [run_with_rule(network, picture(), 0, rule)[1] for rule in RULES]
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])
    assert not torch.allclose(gradients[1], gradients[2])


@pytest.mark.parametrize("rule", RULES)
def test_at_zero_and_six_nothing_passes_an_active_gate(rule: str) -> None:
    for relu, values in (
        (torch.relu, [-1.0, 0.0, 1.0, 7.0]),
        (F.relu6, [-1.0, 0.0, 1.0, 6.0, 7.0]),
    ):
        x = torch.tensor(values, requires_grad=True)
        with backward(rule):
            y = relu(x)
        for g in (2.0, -2.0, 0.0):
            (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, g), retain_graph=True)
            high = 6.0 if relu is F.relu6 else np.inf
            gate = Rectifier(rule, high)
            gate.forward(np.array(values))
            assert np.array_equal(gradient.numpy(), gate.backward(np.full(len(values), g)))


class Branching(nn.Module):
    """A residual block: one tensor goes through a ReLU and around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a = nn.Linear(6, 5)
        self.b = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.head(F.relu(self.b(F.relu(h))) + h)


@pytest.mark.parametrize("rule", RULES)
def test_branches_are_gated_each_for_itself_and_added(rule: str) -> None:
    network = Branching()
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a, b, head = (
        (numbers(m.weight), numbers(m.bias)) for m in (network.a, network.b, network.head)
    )
    inner, outer = Rectifier(rule), Rectifier(rule)
    h = a[0] @ x[0].numpy() + a[1]
    logits = head[0] @ (outer.forward(b[0] @ inner.forward(h) + b[1]) + h) + head[1]
    top = head[0].T @ np.array([0.0, 1.0])
    expected = a[0].T @ (inner.backward(b[0].T @ outer.backward(top)) + top)
    rule_logits, gradient, count = run_with_rule(network, x, 1, rule)
    assert np.allclose(rule_logits[0].numpy(), logits)
    assert np.allclose(gradient[0].numpy(), expected)
    assert count == 2


class Reuse(nn.Module):
    """The input of an out-of-place ReLU is used again, after it."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return (y * 3 + x).sum(1, keepdim=True)


@pytest.mark.parametrize("rule", RULES)
def test_out_of_place_relu_leaves_its_input(rule: str) -> None:
    x = torch.tensor([[-1.0, 2.0]])
    logits, gradient, _ = run_with_rule(Reuse(), x, 0, rule)
    assert logits.item() == 2 * 3 + 1
    assert gradient.tolist() == [[{"gradient": 1.0, "deconvnet": 4.0, "guided": 1.0}[rule], 4.0]]


@pytest.mark.parametrize(
    ("rule", "referee"), [("guided", GuidedBackprop), ("deconvnet", Deconvolution)]
)
def test_captum_agrees_where_every_relu_is_a_module(rule: str, referee: type) -> None:
    network = Chain(nn.ReLU(), nn.ReLU(), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = referee(network).attribute(picture().requires_grad_(), target=2)
    assert torch.allclose(
        run_with_rule(network, picture(), 2, rule)[1], expected.detach(), atol=1e-12
    )


def test_a_batch_is_its_images() -> None:
    network = Chain(F.relu, F.relu, F.relu)
    images = torch.rand(
        3, 3, 8, 10, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    together = run_with_rule(network, images, 1, "guided")[1]
    alone = torch.cat([run_with_rule(network, image[None], 1, "guided")[1] for image in images])
    assert torch.allclose(together, alone, atol=1e-14)


@pytest.mark.parametrize("smooth", [nn.Identity(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.1)])
def test_without_relu_all_three_are_the_gradient(smooth: nn.Module) -> None:
    network = Chain(smooth, smooth, smooth)
    x = picture().requires_grad_()
    (plain,) = torch.autograd.grad(network(x)[0, 0], x)
    for rule in RULES:
        _, gradient, count = run_with_rule(network, picture(), 0, rule)
        assert torch.equal(gradient, plain)
        assert count == 0


@pytest.mark.parametrize("rule", RULES)
def test_no_trace_is_left(rule: str) -> None:
    network = Chain(nn.ReLU(), F.relu, nn.ReLU(inplace=True)).eval()
    image = picture().requires_grad_()
    before = network(image)
    (plain,) = torch.autograd.grad(before[0, 1], image)
    modules = {
        name: (type(m), dict(m._forward_hooks), dict(m._backward_hooks))
        for name, m in network.named_modules()
    }

    def broken() -> None:
        with backward(rule):
            network(image)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    after = network(image)
    (gradient,) = torch.autograd.grad(after[0, 1], image)
    assert torch.equal(before, after)
    assert torch.equal(plain, gradient)
    assert modules == {
        name: (type(m), dict(m._forward_hooks), dict(m._backward_hooks))
        for name, m in network.named_modules()
    }
    assert not hasattr(F.relu, "__wrapped__")


@pytest.mark.parametrize("rule", RULES)
def test_forward_values_are_the_networks_own_also_without_gradient(rule: str) -> None:
    for rectifiers in (
        SPELLINGS["nn.ReLU"](),
        SPELLINGS["x.relu_() as a statement"](),
        SPELLINGS_6["nn.ReLU6(inplace)"](),
    ):
        network = Chain(*rectifiers)
        with torch.no_grad():
            expected = network(picture())
            with backward(rule) as context:
                logits = network(picture())
        assert torch.equal(logits, expected)
        assert not logits.requires_grad
        assert context.count == 3
    x = picture().requires_grad_()
    with backward(rule):
        with torch.no_grad():
            network(x)
        logits = network(x)
    (gradient,) = torch.autograd.grad(logits[0, 0], x)
    assert np.allclose(gradient[0].numpy(), literal(0, rule, 1, 6)[1], atol=1e-12)


def test_half_of_a_network_without_gradient() -> None:
    """The rule acts on the part that is differentiated; the part under no_grad is a constant."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    with backward("deconvnet"):
        with torch.no_grad():
            h = F.relu(first(x))
        h.requires_grad_()
        y = second(F.relu(h))
    (gradient,) = torch.autograd.grad(y.sum(), h)
    assert torch.equal(gradient[0], second.weight[0].detach().clamp(min=0))


CLAMPS = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "clamp_": lambda x: x.clone().clamp_(min=0),
    "clip to 6": lambda x: torch.clip(x, 0, 6),
    "threshold": lambda x: nn.functional.threshold(x, 0, 0),
}


@pytest.mark.parametrize("spelling", CLAMPS)
def test_a_clamp_at_zero_is_a_relu(spelling: str) -> None:
    image = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    with backward("guided") as rule:
        (CLAMPS[spelling](image) * upstream).sum().backward()
    assert rule.count == 1
    torch.testing.assert_close(image.grad, upstream.clamp(min=0) * (image > 0))


@pytest.mark.parametrize(
    ("call", "ceiling"),
    [
        ((torch.clamp, (0, 6), {}), 6),
        ((torch.clamp, (), {"min": 0.0, "max": 3}), 3),
        ((torch.clamp, (0,), {"max": None}), np.inf),
        ((torch.clamp, (0, 0), {}), None),
        ((torch.clamp, (-1, 1), {}), None),
        ((torch.clamp, (), {"max": 2}), None),
        ((torch.clamp, (torch.zeros(3),), {}), None),
        ((torch.clamp, (0, torch.ones(3)), {}), None),
        ((F.threshold, (0, 0), {}), np.inf),
        ((F.threshold, (), {"threshold": 0, "value": 0.0}), np.inf),
        ((F.threshold, (0, 1), {}), None),
        ((F.threshold, (1, 0), {}), None),
        ((F.hardtanh, (), {}), None),
        ((F.hardtanh, (0,), {}), 1),
        ((F.hardtanh, (), {"min_val": 0.0, "max_val": 4}), 4),
        ((F.relu6, (), {"inplace": True}), 6),
        ((F.gelu, (), {}), None),
    ],
)
def test_which_calls_are_a_relu_and_where_they_clip(
    call: tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]], ceiling: float | None
) -> None:
    function, arguments, settings = call
    assert find_relu_ceiling(function, (torch.ones(3), *arguments), settings) == ceiling


@pytest.mark.parametrize(
    ("clamp", "high"),
    [
        (lambda x: x.clamp_(0, 6), 6),
        (lambda x: x.clamp_min_(0), np.inf),
        (lambda x: x.clip_(0, 2), 2),
        (lambda x: F.hardtanh_(x, 0, 6), 6),
        (lambda x: F.hardtanh(x, 0, 6, True), 6),
        (lambda x: F.relu6(x, inplace=True), 6),
    ],
)
@pytest.mark.parametrize("rule", [*RULES, "redirect"])
def test_a_clamp_writes_in_place_where_it_should(
    clamp: Callable[[Tensor], Tensor], high: float, rule: str
) -> None:
    with backward(rule):
        x = torch.tensor([-1.0, 1.0, 9.0], requires_grad=True) * 1
        y = clamp(x)
    assert y.data_ptr() == x.data_ptr()
    assert x.tolist() == [0.0, 1.0, min(9.0, high)]


@pytest.mark.parametrize("relu", [F.relu, F.relu6])
def test_a_redirected_gradient_does_not_push_inactive_inputs_away(
    relu: Callable[[Tensor], Tensor],
) -> None:
    """Written out for a loss, which goes down: a positive gradient pushes the input down."""
    high = 6 if relu is F.relu6 else np.inf
    inputs = torch.tensor(
        [
            [[-1.0, -1.0], [0.0, 7.0], [7.0, -2.0]],  # for these gradients nothing gets through
            [[-1.0, -1.0], [1.0, 7.0], [7.0, -2.0]],  # here the input 1 is active
        ]
    )
    upstream = torch.tensor([[[2.0, -2.0], [-3.0, 3.0], [-4.0, 5.0]]]).expand(2, 3, 2).clone()
    if relu is F.relu:
        inputs[inputs == 7] = -7  # without a ceiling nothing is inactive above
    leaf = inputs.clone().requires_grad_()
    with backward("redirect"):
        output = relu(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, upstream)

    expected = torch.zeros_like(inputs)
    for image in range(2):
        active = (inputs[image] > 0) & (inputs[image] < high)
        for row, column in np.ndindex(3, 2):
            x = float(inputs[image, row, column])
            g = float(upstream[image, row, column])
            if active.any():
                passes = bool(active[row, column])
            else:
                passes = not (x <= 0 and g > 0) and not (x >= high and g < 0)
            expected[image, row, column] = g if passes else 0.0
    assert torch.equal(gradient, expected)
    assert gradient[0].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "clamp",
    [lambda x: x.clamp(min=0), lambda x: F.hardtanh(x, 0, 6), lambda x: F.threshold(x, 0, 0)],
)
def test_the_result_of_a_clamp_may_be_overwritten(
    clamp: Callable[[Tensor], Tensor], rule: str
) -> None:
    """As without a rule: a clamp needs its input for the backward pass, a ReLU its result."""
    image = torch.tensor([-1.0, 2.0]).requires_grad_()
    with backward(rule):
        (3 * clamp(image).mul_(-1)).sum().backward()
    assert image.grad.tolist() == [0.0, {"gradient": -3.0, "deconvnet": 0.0, "guided": 0.0}[rule]]


def test_a_relu_writes_in_place_where_it_should() -> None:
    with backward("guided"):
        x = torch.tensor([-1.0, 2.0], requires_grad=True) * 1
        y = F.relu(x, inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert x.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("rule", [*RULES, "redirect"])
@pytest.mark.parametrize(
    "activate",
    [torch.relu, F.relu6, lambda x: F.relu(x * 1, inplace=True)],
    ids=["relu", "relu6", "in place"],
)
def test_inside_vmap_of_the_networks_own(rule: Any, activate: Callable[[Tensor], Tensor]) -> None:
    """The gradient is that of the same steps written one after another."""
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    views = torch.randn(2, 3, 2, 6, 6, generator=torch.Generator().manual_seed(2)) * 4

    def score(view: Tensor) -> Tensor:
        return (activate(F.conv2d(view, weight)) - 1).square().mean((1, 2, 3)) / 2

    def differentiate(combine: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = views.clone().requires_grad_()
        with backward(rule) as mode:
            scores = combine(leaf)
        assert mode.count > 0
        return torch.autograd.grad(scores.sum(), leaf)[0]

    together = differentiate(torch.vmap(score, in_dims=1, out_dims=1))
    apart = differentiate(lambda leaf: torch.stack([score(leaf[:, i]) for i in range(3)], 1))
    torch.testing.assert_close(together, apart)
