"""Frozen linear layers and batch norms are torch's own to rounding, also twice differentiated."""

from typing import Any

import pytest
import torch
from helpers import assert_close, differentiate_twice, make_input, needs_fast_operations
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.overrides import frozen_layers
from sightline.models.overrides.onednn import use_packed_weights


def assert_same(module: nn.Module, x: Tensor) -> None:
    """The frozen module gives the same with and without packed weights."""
    module = module.eval().requires_grad_(False)

    def run_packed(x: Tensor) -> Tensor:
        with use_packed_weights():
            return module(x)

    with torch.no_grad():
        assert_close(run_packed(x), module(x))
    pairs = zip(differentiate_twice(run_packed, x), differentiate_twice(module, x), strict=True)
    for derivative, expected in pairs:
        assert_close(derivative, expected)


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small linear layers count as large."""
    monkeypatch.setattr(frozen_layers, "MIN_SPARSE_LINEAR_ELEMENTS", 1)


@pytest.mark.usefixtures("every_size", "fast_or_portable")
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("count", [1, 2])
def test_linear_layers(activation: nn.Module | None, count: int) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(9, 40), nn.Linear(40, 5)]
    if activation is not None:
        layers.insert(1, activation)
    assert_same(nn.Sequential(*layers), make_input(count, 9))


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_over_transposed_tokens(batch_first: bool) -> None:
    torch.manual_seed(0)

    class SelfAttention(nn.Module):
        """Tokens that look at each other, then at themselves in reverse order."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x)[0]
            return self.attention(query=x, key=x.flip(0), value=x.flip(1))[0]

    assert_same(SelfAttention(), make_input(3, 5, 8).transpose(0, 1))


@pytest.fixture
def everything_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products count as large."""
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_POSITIONS", 1)


@pytest.mark.usefixtures("everything_packed", "fast_or_portable")
@pytest.mark.parametrize("shape", [(1, 9), (7, 9), (2, 5, 9), (2, 3, 4, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_layers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(9, 12, bias=bias), nn.Tanh(), nn.Linear(12, 5, bias=bias))
    assert_same(network, make_input(*shape))


@needs_fast_operations
@pytest.mark.usefixtures("everything_packed")
def test_a_packed_linear_weight_is_packed_again_when_it_was_written() -> None:
    layer = nn.Linear(9, 6).requires_grad_(False)
    x = make_input(4, 9).requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        with use_packed_weights():
            output = layer(x)
        return output.detach(), torch.autograd.grad(output[:, 2].sum(), x)[0]

    run()
    packed = frozen_layers.get_packed_linear_weight(layer.weight)
    assert set(packed.reordered) == {"forward", "backward"}
    assert frozen_layers.get_packed_linear_weight(layer.weight) is packed
    for write in (lambda: layer.weight.mul_(2), lambda: layer.weight.data.add_(1)):
        write()
        output, gradient = run()
        assert_close(output, F.linear(x.detach(), layer.weight, layer.bias))
        assert_close(gradient, layer.weight[2].expand(4, -1))
    assert frozen_layers.get_packed_linear_weight(layer.weight) is not packed


@needs_fast_operations
@pytest.mark.usefixtures("everything_packed")
def test_what_is_not_packed() -> None:
    layer = nn.Linear(9, 6)
    x = make_input(4, 9)
    assert not frozen_layers.is_worth_packing(x, layer.weight, layer.bias)  # it is trained
    layer.requires_grad_(False)
    assert frozen_layers.is_worth_packing(x, layer.weight, layer.bias)
    assert not frozen_layers.is_worth_packing(x.double(), layer.weight, layer.bias)
    assert not frozen_layers.is_worth_packing(x, layer.weight * 1, layer.bias)  # no parameter
    turned = nn.Parameter(layer.weight.T.contiguous().T, requires_grad=False)
    assert not frozen_layers.is_worth_packing(x, turned, None)
    wrong_units = x[:, :3].repeat(3, 1)  # as many numbers, and no product with the weight
    assert not frozen_layers.is_worth_packing(wrong_units, layer.weight, layer.bias)


class PlainAttention(nn.Module):
    """Tokens among each other, whose weights nobody asks for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **settings)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(x, x, x, need_weights=False)[0]
        return self.attention(x, attended, x, need_weights=False)[0]


@pytest.mark.usefixtures("everything_packed", "fast_or_portable")
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_first": True},
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"dropout": 0.5},
        {"kdim": 12, "vdim": 12},
    ],
    ids=str,
)
def test_packed_attention(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = PlainAttention(**settings).eval().requires_grad_(False)
    x = make_input(4, 5, 12).requires_grad_()
    expected = network(x)
    with use_packed_weights():
        output = network(x)
    assert_close(output.detach(), expected.detach())
    # torch's own fused attention can't be differentiated twice.
    weights = make_input(*x.shape)
    gradients = [torch.autograd.grad((each * weights).sum(), x)[0] for each in (output, expected)]
    assert_close(*gradients)
    with torch.no_grad(), use_packed_weights():
        assert_close(network(x), expected)


@needs_fast_operations
@pytest.mark.usefixtures("everything_packed")
def test_attention_with_a_mask_keeps_it() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval().requires_grad_(False)
    x = make_input(2, 5, 12)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False, False, True, True, False]])
    for masks in ({"attn_mask": mask}, {"key_padding_mask": padding}):
        for need_weights in (True, False):
            expected = attention(x, x, x, need_weights=need_weights, **masks)
            with use_packed_weights():
                outputs = attention(x, x, x, need_weights=need_weights, **masks)
            assert_close(outputs[0], expected[0])
            assert (outputs[1] is None) == (expected[1] is None)


@needs_fast_operations
def test_a_linear_layer_of_transposed_tokens_copies_them() -> None:
    layer = nn.Linear(8, 6).requires_grad_(False)
    tokens = make_input(3, 5, 8)
    output = frozen_layers.try_frozen_linear(tokens.transpose(0, 1), layer.weight, layer.bias)
    assert output is not None
    assert_close(output, layer(tokens).transpose(0, 1))
    # torch's own way is as fast for these.
    assert frozen_layers.try_frozen_linear(tokens, layer.weight, layer.bias) is None


@needs_fast_operations
@pytest.mark.usefixtures("every_size")
def test_one_class_of_a_linear_layer_reads_one_row() -> None:
    layer = nn.Linear(9, 40).requires_grad_(False)
    x = make_input(1, 9).requires_grad_()
    with use_packed_weights():
        score = layer(x)[0, 3]
    layer.weight[4:] = torch.nan
    (gradient,) = torch.autograd.grad(score, x)
    assert_close(gradient, layer.weight[3:4])


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize(
    ("active", "is_sparse"), [(0, False), (1, True), (30, True), (31, False), (40, False)]
)
def test_a_gradient_of_many_outputs_takes_the_whole_product(
    active: int, is_sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    embedding_bag = frozen_layers.F.embedding_bag

    def record(rows: Tensor, *args: Tensor, **settings: object) -> Tensor:
        calls.append(rows)
        return embedding_bag(rows, *args, **settings)  # type: ignore[arg-type]

    layer = nn.Linear(9, 40).requires_grad_(False)
    x = make_input(1, 9).requires_grad_()
    output = frozen_layers.try_sparse_linear(x, layer.weight, layer.bias)
    assert output is not None
    upstream = make_input(1, 40)
    upstream[:, active:] = 0
    monkeypatch.setattr(frozen_layers.F, "embedding_bag", record)
    (gradient,) = torch.autograd.grad(output, x, upstream)
    assert_close(gradient, upstream @ layer.weight)
    assert len(calls) == is_sparse


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms(affine: bool) -> None:
    norm = nn.BatchNorm2d(6, affine=affine, eps=0.01)
    generator = torch.Generator().manual_seed(1)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(6, generator=generator) + 0.5)
    assert_same(norm, make_input(2, 6, 9, 8))


def test_a_batch_norm_without_running_statistics_stays_torchs() -> None:
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    assert_same(norm, make_input(2, 6, 9, 8))
    x = make_input(2, 6, 9, 8).requires_grad_()
    assert frozen_layers.try_frozen_batch_norm(x, None, None) is None


def test_a_batch_norm_without_a_gradient_stays_torchs() -> None:
    x = make_input(2, 6, 61, 43).requires_grad_()
    statistics = (torch.zeros(6), torch.ones(6))
    assert frozen_layers.try_frozen_batch_norm(x, *statistics) is not None
    assert frozen_layers.try_frozen_batch_norm(x.detach(), *statistics) is None
    with torch.no_grad():
        assert frozen_layers.try_frozen_batch_norm(x, *statistics) is None


@pytest.mark.parametrize(
    ("x", "weight", "is_frozen"),
    [
        (make_input(2, 3, 4, 5), make_input(3), True),
        (make_input(2, 3), make_input(3), True),
        (make_input(2, 3), None, True),
        (make_input(2, 3, 4), make_input(3), False),
        (make_input(0, 3), make_input(3), False),
        (make_input(2, 3).double(), make_input(3), False),
        (make_input(2, 3), make_input(3).double(), False),
        (make_input(2, 3), make_input(3).requires_grad_(), False),
        (nn.Parameter(make_input(2, 3)), make_input(3), False),
        (make_input(2, 3).to("meta"), make_input(3), False),
    ],
)
def test_what_counts_as_frozen(x: Tensor, weight: Tensor | None, is_frozen: bool) -> None:
    assert frozen_layers.is_frozen_float32(x, weight) == is_frozen


# ── convolutions of 1×1 ──


@pytest.mark.parametrize("size", [(2, 9, 14), (1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_small_pointwise_convolutions(size: tuple[int, int, int], bias: bool) -> None:
    layer = nn.Conv2d(5, 7, 1, bias=bias).requires_grad_(False)
    x = make_input(size[0], 5, *size[1:])

    def convolve(x: Tensor) -> Tensor:
        output = frozen_layers.try_pointwise_linear(x, layer.weight, layer.bias, (1, 1), (0, 0))
        assert output is not None
        return output

    assert convolve(x).is_contiguous(memory_format=torch.channels_last)
    assert_close(convolve(x), layer(x))
    derivatives = differentiate_twice(convolve, x)
    for derivative, expected in zip(derivatives, differentiate_twice(layer, x), strict=True):
        assert_close(derivative, expected)


def test_a_pointwise_convolution_keeps_no_input() -> None:
    layer = nn.Conv2d(5, 7, 1).requires_grad_(False)
    x = make_input(1, 5, 6, 9).requires_grad_()
    hidden = x * 2
    output = frozen_layers.try_pointwise_linear(hidden, layer.weight, layer.bias)
    assert output is not None
    hidden.mul_(0)
    output.sum().backward()
    assert_close(x.grad, 2 * layer.weight.sum((0, 2, 3)).view(1, 5, 1, 1).expand(1, 5, 6, 9))


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3}, {"stride": 2}, {"stride": (1, 2)}, {"padding": 1}, {"groups": 2}],
    ids=["3×3", "stride 2", "stride 1 and 2", "padding", "groups"],
)
def test_other_convolutions_are_no_linear_layers(settings: dict[str, int]) -> None:
    layer = nn.Conv2d(4, 6, **{"kernel_size": 1, **settings}).requires_grad_(False)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    x = make_input(1, 4, 6, 9)
    assert frozen_layers.try_pointwise_linear(x, layer.weight, layer.bias, *geometry) is None


def test_large_or_trained_pointwise_convolutions_are_no_linear_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = make_input(2, 4, 6, 9)
    weight = make_input(5, 4, 1, 1)
    monkeypatch.setattr(frozen_layers, "MAX_LINEAR_MULTIPLY_ADDS", 2 * 6 * 9 * 5 * 4)
    assert frozen_layers.try_pointwise_linear(x, weight) is not None
    assert frozen_layers.try_pointwise_linear(x.repeat(2, 1, 1, 1), weight) is None
    assert frozen_layers.try_pointwise_linear(x, weight.requires_grad_()) is None


def run_packed_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    with use_packed_weights():
        return norm(x)


def make_written_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5).eval().requires_grad_(False)
    for index, tensor in enumerate((norm.running_mean, norm.running_var, norm.weight, norm.bias)):
        assert tensor is not None
        tensor.copy_(make_input(5).abs() + 0.2 * index)
    return norm


@needs_fast_operations
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("way", ["in place", "data", "new data"])
def test_a_batch_norm_that_was_written_to_is_computed_anew(name: str, way: str) -> None:
    norm = make_written_norm()
    x = make_input(2, 5, 7, 6).requires_grad_()
    before = run_packed_norm(norm, x)
    tensor: Tensor = getattr(norm, name)
    if way == "in place":
        tensor.mul_(1.5)
    elif way == "data":
        tensor.data.mul_(1.5)
    else:
        tensor.data = tensor * 1.5
    output = run_packed_norm(norm, x)
    assert not torch.allclose(output, before)
    assert_close(output.detach(), norm(x).detach())


@needs_fast_operations
def test_factors_of_a_batch_norm_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    compute = frozen_layers.compute_norm_factors

    def record(statistics: frozen_layers.NormStatistics, eps: float) -> tuple[Tensor, Tensor]:
        calls.append(eps)
        return compute(statistics, eps)

    monkeypatch.setattr(frozen_layers, "compute_norm_factors", record)
    norm = make_written_norm()
    x = make_input(2, 5, 7, 6).requires_grad_()
    for _ in range(3):
        assert_close(run_packed_norm(norm, x).detach(), norm(x).detach())
    assert calls == [norm.eps]
    # The same statistics with other weights, as of one norm for each domain, or another epsilon.
    weights, bias = norm.weight, norm.bias
    norm.weight = nn.Parameter(2 * weights, requires_grad=False)
    assert_close(run_packed_norm(norm, x).detach(), norm(x).detach())
    norm.weight = norm.bias = None  # type: ignore[assignment]
    assert_close(run_packed_norm(norm, x).detach(), norm(x).detach())
    norm.weight, norm.bias = weights, bias
    for eps in (norm.eps, 0.5):
        norm.eps = eps
        assert_close(run_packed_norm(norm, x).detach(), norm(x).detach())
    assert len(calls) == 5


@needs_fast_operations
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_batch_norm_that_is_trained_from_now_on_has_its_gradients(name: str) -> None:
    norm = make_written_norm()
    x = make_input(2, 5, 3, 4).requires_grad_()
    run_packed_norm(norm, x)
    trained = getattr(norm, name).requires_grad_()
    gradients = [
        torch.autograd.grad(output.square().sum(), (x, trained))
        for output in (run_packed_norm(norm, x), norm(x))
    ]
    for gradient, expected in zip(*gradients, strict=True):
        assert_close(gradient, expected)


@needs_fast_operations
def test_factors_are_not_used_for_other_precisions() -> None:
    norm = make_written_norm()
    x = make_input(2, 5, 3, 4)
    run_packed_norm(norm, x.requires_grad_())
    half = x.detach().bfloat16().requires_grad_()
    assert torch.equal(run_packed_norm(norm, half), norm(half))


@needs_fast_operations
def test_factors_go_with_the_batch_norm() -> None:
    count = len(frozen_layers.NORM_FACTORS)
    norm = make_written_norm()
    output = run_packed_norm(norm, make_input(2, 5, 7, 6).requires_grad_())
    assert len(frozen_layers.NORM_FACTORS) == count + 1
    del norm, output
    assert len(frozen_layers.NORM_FACTORS) == count
