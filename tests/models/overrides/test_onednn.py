"""Convolutions, linear layers and batch norms by packed weights are torch's own to rounding, forward, backward and twice backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sightline as sl
from sightline.models.overrides import onednn as packed

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN"
)


def close(one: Tensor, other: Tensor) -> None:
    """Equal but for rounding."""
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= 1e-5 * max(1e-3, float(other.abs().max()))


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A function's result, the gradient of a curved score of it, and the gradient of that gradient's size."""
    leaf = x.clone().requires_grad_()
    found = function(leaf)
    (first,) = torch.autograd.grad(found.square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    return found.detach(), first.detach(), second


def same(module: nn.Module, x: Tensor) -> None:
    """The module under `faster` gives what it gives alone, with and without gradients."""
    module = module.eval().requires_grad_(False)

    def fast(x: Tensor) -> Tensor:
        with packed.use_packed_weights():
            return module(x)

    with torch.no_grad():
        close(fast(x), module(x))
    for one, other in zip(derivatives(fast, x), derivatives(module, x), strict=True):
        close(one, other)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ── the same numbers ──


@pytest.mark.parametrize(
    ("channels", "knobs"),
    [
        ((5, 7), {"kernel_size": 3, "padding": 1}),
        ((5, 7), {"kernel_size": 1}),
        ((5, 7), {"kernel_size": (1, 5), "padding": (0, 2), "bias": False}),
        ((5, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((5, 7), {"kernel_size": (3, 2), "stride": (2, 3)}),
        ((5, 7), {"kernel_size": 2, "stride": 4}),
        ((5, 7), {"kernel_size": 3, "dilation": 2, "padding": 2}),
        ((6, 8), {"kernel_size": 3, "groups": 2}),
        ((8, 8), {"kernel_size": 3, "groups": 8, "stride": 2, "padding": 1}),
        ((3, 7), {"kernel_size": 7, "stride": 2, "padding": 3}),
        ((3, 7), {"kernel_size": 7, "stride": 2}),
        ((1, 7), {"kernel_size": 11, "stride": 4, "padding": 2}),
        ((3, 7), {"kernel_size": 7, "stride": 3, "padding": 1}),
        ((3, 7), {"kernel_size": 7, "stride": 2, "padding": 6}),
        ((5, 7), {"kernel_size": 3, "padding": "same"}),
        ((5, 7), {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    ],
)
@pytest.mark.parametrize("size", [(1, 17, 24), (3, 22, 19)])
def test_convolutions(
    channels: tuple[int, int], knobs: dict[str, Any], size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    same(nn.Conv2d(*channels, **knobs), drawn(size[0], channels[0], *size[1:]))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms(affine: bool) -> None:
    norm = nn.BatchNorm2d(6, affine=affine)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(6) + 0.5)
    same(norm, drawn(2, 6, 9, 8))


@pytest.mark.parametrize("rule", [None, nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("count", [1, 2])
def test_linear_layers(rule: nn.Module | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MIN_SPARSE_LINEAR_ELEMENTS", 1)
    torch.manual_seed(0)
    same(
        nn.Sequential(nn.Linear(9, 40), *[rule] if rule else [], nn.Linear(40, 5)), drawn(count, 9)
    )


def test_one_class_of_a_linear_layer_reads_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MIN_SPARSE_LINEAR_ELEMENTS", 1)
    layer, x = nn.Linear(9, 40).requires_grad_(False), drawn(1, 9).requires_grad_()
    with packed.use_packed_weights():
        score = layer(x)[0, 3]
    layer.weight[4:] = torch.nan
    (found,) = torch.autograd.grad(score, x)
    close(found, layer.weight[3:4])


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2"])
def test_networks(name: str) -> None:
    """Whole networks at a small size, by the medians of what differs: where a ReLU's input is nearly 0, rounding decides."""
    model, image = (
        sl.load(name, weights="random", device="cpu"),
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )
    found: list[tuple[Tensor, Tensor]] = []
    for context in (packed.use_packed_weights, packed.PackingDisabled):
        leaf = image.clone().requires_grad_()
        with context():
            logits = model.logits(leaf)
        found.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), leaf)[0]))
    (logits, gradient), (plain, slow) = found
    close(logits, plain)
    assert float((gradient - slow).abs().median()) <= 1e-5 * float(slow.abs().max())


# ── what is kept ──


@needs_onednn
@pytest.mark.parametrize("write", ["in place", "data", "state"])
def test_weights_that_are_written_to_are_packed_anew(write: str) -> None:
    convolution = nn.Conv2d(3, 4, 3)
    network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(144, 2))
    model, image = sl.load(network, size=8, device="cpu"), torch.rand(1, 3, 8, 8)
    before = model.logits(image)
    if write == "in place":
        with torch.no_grad():
            convolution.weight.mul_(2)
    elif write == "data":
        convolution.weight.data.mul_(2)
    else:
        network.load_state_dict({name: 2 * value for name, value in network.state_dict().items()})
    after = model.logits(image)
    assert not torch.allclose(before, after)
    with packed.PackingDisabled():
        close(after, model.logits(image))


@needs_onednn
def test_what_is_kept_goes_with_the_weight() -> None:
    count = len(packed.PACKED_WEIGHTS)
    model = sl.load(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), size=8, device="cpu"
    )
    model.logits(torch.rand(1, 3, 8, 8))
    assert len(packed.PACKED_WEIGHTS) == count + 1
    del model
    assert len(packed.PACKED_WEIGHTS) == count


# ── left to torch ──


def untouched(layer: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a layer runs as it is."""
    calls: list[str] = []
    monkeypatch.setattr(packed, "get_packed_weight", lambda *_: calls.append("convolution"))
    monkeypatch.setattr(torch, "addcmul", lambda *_: calls.append("batch norm"))
    with packed.use_packed_weights():
        layer(x)
    return not calls


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 3).double().requires_grad_(False),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3).requires_grad_(False),
    ],
    ids=["trained", "double precision", "trained norm", "norm in training"],
)
def test_what_is_trained_or_of_another_precision_is_left_alone(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=next(layer.parameters()).dtype)
    assert untouched(layer, x, monkeypatch)


def test_weights_that_are_computed_for_each_pass_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)).requires_grad_(False)
    assert untouched(layer, torch.rand(1, 3, 8, 8), monkeypatch)


def test_whoever_watches_operations_sees_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(3, 4, 3).requires_grad_(False), torch.rand(1, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        assert untouched(layer, x, monkeypatch)
    assert counter.get_total_flops() == 2 * 36 * 4 * 27
    with packed.PackingDisabled():
        assert untouched(layer, x, monkeypatch)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_torchs_own_transforms_go_through() -> None:
    layer, x = nn.Conv2d(3, 4, 3).requires_grad_(False), drawn(1, 3, 8, 8)

    def fast(x: Tensor) -> Tensor:
        with packed.use_packed_weights():
            return layer(x)

    close(torch.func.vmap(fast)(x[None])[0], layer(x))
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(fast(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert moved is not None
    close(moved, F.conv2d(torch.ones_like(x), layer.weight))
