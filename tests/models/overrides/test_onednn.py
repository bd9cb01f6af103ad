"""Convolutions by packed weights are torch's own to rounding, also twice differentiated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, differentiate_twice, make_input, needs_onednn
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sightline as sl
from sightline.models.overrides import frozen_layers, onednn
from sightline.models.overrides.fast_operations import count_function_modes
from sightline.models.overrides.onednn import (
    LayerSizes,
    PackingDisabled,
    find_layer_sizes,
    use_packed_weights,
)
from sightline.models.overrides.unsaved_inputs import InPlaceWrites, UnsavedInputsMode


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights count as large."""
    monkeypatch.setattr(onednn, "MIN_PACKED_WEIGHT_ELEMENTS", 0)
    monkeypatch.setattr(onednn, "MIN_MEAN_WEIGHT_ELEMENTS", 0)


def run_packed(module: nn.Module, x: Tensor) -> Tensor:
    with use_packed_weights():
        return module(x)


# ── the same numbers ──


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        ((5, 7), {"kernel_size": 3, "padding": 1}),
        ((5, 7), {"kernel_size": 1}),
        ((5, 7), {"kernel_size": (1, 5), "padding": (0, 2), "bias": False}),
        ((5, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((5, 7), {"kernel_size": (3, 2), "stride": (2, 3)}),
        ((5, 7), {"kernel_size": (3, 4), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}),
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
    channels: tuple[int, int], settings: dict[str, Any], size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(*channels, **settings).eval().requires_grad_(False)
    x = make_input(size[0], channels[0], *size[1:])
    with torch.no_grad():
        assert_close(run_packed(convolution, x), convolution(x))
    derivatives = differentiate_twice(lambda x: run_packed(convolution, x), x)
    expected = differentiate_twice(convolution, x)
    for derivative, expected_derivative in zip(derivatives, expected, strict=True):
        assert_close(derivative, expected_derivative)


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2"])
def test_networks(name: str) -> None:
    """Where a ReLU's input is nearly 0, rounding decides: gradients are compared by the median."""
    model = sl.load(name, weights="random", device="cpu")
    image = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    logits: list[Tensor] = []
    gradients: list[Tensor] = []
    for context in (use_packed_weights, PackingDisabled):
        leaf = image.clone().requires_grad_()
        with context():
            output = model.logits(leaf)
        logits.append(output.detach())
        gradients.append(torch.autograd.grad(output[:, 0].sum(), leaf)[0])
    assert_close(*logits)
    difference = (gradients[0] - gradients[1]).abs().median()
    assert float(difference) <= 1e-5 * float(gradients[1].abs().max())


@pytest.mark.usefixtures("fast_or_portable")
def test_one_size_after_another() -> None:
    """What is kept for one size and number of images does for others."""
    convolution = nn.Conv2d(3, 8, 7, 2, 3).requires_grad_(False)
    deep = nn.Conv2d(8, 6, (3, 2), 2, 1).requires_grad_(False)
    network = nn.Sequential(convolution, deep)
    for size in ((2, 3, 20, 31), (1, 3, 37, 18), (3, 3, 20, 30)):
        x = make_input(*size)
        derivatives = differentiate_twice(lambda x: run_packed(network, x), x)
        for derivative, expected in zip(derivatives, differentiate_twice(network, x), strict=True):
            assert_close(derivative, expected)


def expand_bias(count: int) -> nn.Parameter:
    return nn.Parameter(torch.tensor([0.3]).expand(count))


def slice_bias(count: int) -> nn.Parameter:
    return nn.Parameter(make_input(count, 2)[:, 1])


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("make_bias", [expand_bias, slice_bias])
def test_biases_that_are_no_row_in_memory(make_bias: Callable[[int], nn.Parameter]) -> None:
    """oneDNN would read what lies behind the first number."""
    convolution = nn.Conv2d(5, 70, 3)
    linear = nn.Linear(70, 90)
    for layer in (convolution, linear):
        layer.bias = make_bias(len(layer.weight))
        layer.requires_grad_(False)
    maps, vectors = make_input(2, 5, 8, 9), make_input(600, 70)
    for layer, x in ((convolution, maps), (linear, vectors)):
        assert_close(run_packed(layer, x), layer(x))


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize("shape", [(), (1,), (1, 90), (600, 90)])
def test_biases_of_another_shape(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(make_input(90, 70), requires_grad=False)
    bias = nn.Parameter(torch.full(shape, 0.4), requires_grad=False)
    x = make_input(600, 70)
    with use_packed_weights():
        output = F.linear(x, weight, bias)
    assert_close(output, F.linear(x, weight, bias))


@pytest.mark.usefixtures("fast_or_portable")
@pytest.mark.parametrize(
    "settings",
    [{"stride": 0}, {"dilation": 0}, {"padding": -1}, {"groups": 2}, {"stride": (1,) * 3}],
)
def test_settings_that_torch_refuses(settings: dict[str, Any]) -> None:
    """oneDNN divides by a stride of 0, which ends the process."""
    weight = nn.Parameter(make_input(7, 4 // settings.get("groups", 1), 3, 3), requires_grad=False)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **settings}
    with use_packed_weights(), pytest.raises(RuntimeError):
        F.conv2d(make_input(1, 4, 8, 9), weight, None, *arguments.values())


# ── what is kept ──


@needs_onednn
@pytest.mark.parametrize("write", ["in place", "data", "state"])
def test_weights_that_are_written_to_are_packed_anew(write: str) -> None:
    convolution = nn.Conv2d(3, 4, 3)
    network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(144, 2))
    model = sl.load(network, size=8, device="cpu")
    image = torch.rand(1, 3, 8, 8)
    previous = model.logits(image)
    if write == "in place":
        with torch.no_grad():
            convolution.weight.mul_(2)
    elif write == "data":
        convolution.weight.data.mul_(2)
    else:
        network.load_state_dict({name: 2 * value for name, value in network.state_dict().items()})
    logits = model.logits(image)
    assert not torch.allclose(previous, logits)
    with PackingDisabled():
        assert_close(logits, model.logits(image))


@needs_onednn
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.Linear(9, 7)], ids=["conv", "linear"])
def test_a_weight_that_was_given_other_memory_is_packed_anew(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_POSITIONS", 1)
    layer.requires_grad_(False)
    x = make_input(2, 3, 8, 9)
    before = run_packed(layer, x)
    weight: Any = layer.weight
    weight.data = weight.data * 1.5
    output = run_packed(layer, x)
    assert not torch.allclose(output, before)
    assert_close(output, layer(x))


@needs_onednn
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("axis", [0, 1], ids=["filter", "input channel"])
def test_what_is_pruned_by_data_is_packed_anew(axis: int, layout: torch.memory_format) -> None:
    """Each filter and each input channel, in a weight of which only a sample is compared."""
    convolution = nn.Conv2d(24, 36, 3).requires_grad_(False).to(memory_format=layout)
    linear = nn.Linear(160, 100).requires_grad_(False)
    maps, vectors = make_input(1, 24, 9, 8), make_input(300, 160)
    for layer, x in ((convolution, maps), (linear, vectors)):
        for index in range(0, layer.weight.shape[axis], 5):
            run_packed(layer, x)
            layer.weight.data.select(axis, index).zero_()
            assert_close(run_packed(layer, x), layer(x))


@needs_onednn
def test_a_weight_written_to_before_the_backward_pass_is_packed_anew() -> None:
    convolution = nn.Conv2d(3, 4, (3, 2)).requires_grad_(False)
    x = make_input(1, 3, 8, 9).requires_grad_()
    torch.autograd.grad(run_packed(convolution, x).sum(), x)  # packs it for both directions
    output = run_packed(convolution, x)
    convolution.weight.mul_(2)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    (expected,) = torch.autograd.grad(convolution(x).sum(), x)
    assert_close(gradient, expected)


@needs_onednn
def test_what_is_packed_goes_with_the_weight() -> None:
    count = len(onednn.PACKED_WEIGHTS)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    model = sl.load(network, size=8, device="cpu")
    model.logits(torch.rand(1, 3, 8, 8))
    assert len(onednn.PACKED_WEIGHTS) == count + 1
    del model
    assert len(onednn.PACKED_WEIGHTS) == count


def get_layouts(weight: Tensor) -> list[bytes]:
    """The layouts in which a weight is kept."""
    (packed,) = onednn.PACKED_WEIGHTS[weight].values()
    return [onednn.get_packed_layout(reordered) for reordered in packed.reordered.values()]


@needs_onednn
@pytest.mark.parametrize(
    ("channels", "settings"),
    [((320, 64), {"kernel_size": 1}), ((64, 96), {"kernel_size": 3, "padding": 1})],
)
def test_each_size_runs_by_the_layout_that_is_best_for_it(
    channels: tuple[int, int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the layout for another size a convolution can take forty times as long."""
    convolution = nn.Conv2d(*channels, **settings).requires_grad_(False)
    used: list[bytes] = []
    run = onednn.run_packed_convolution

    def record(x: Tensor, packed: Tensor, *rest: Any) -> Tensor:
        used.append(onednn.get_packed_layout(packed))
        return run(x, packed, *rest)

    monkeypatch.setattr(onednn, "run_packed_convolution", record)
    monkeypatch.setattr(frozen_layers, "MAX_LINEAR_MULTIPLY_ADDS", 0)
    sizes = ((4, 3, 4), (1, 7, 7), (2, 28, 36), (1, 28, 28), (4, 3, 4))
    expected: list[bytes] = []
    for count, *size in sizes:
        x = make_input(count, channels[0], *size)
        assert_close(run_packed(convolution, x), convolution(x))
        geometry = onednn.ConvGeometry((1, 1), convolution.padding)  # type: ignore[arg-type]
        best = onednn.reorder_convolution_weight(convolution.weight, geometry, x.shape)
        expected.append(onednn.get_packed_layout(best))
    assert used == expected
    assert sorted(get_layouts(convolution.weight)) == sorted(set(expected))


@needs_onednn
def test_a_shape_met_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    reorder = onednn.reorder_convolution_weight

    def record(weight: Tensor, geometry: Any, shape: torch.Size) -> Tensor:
        shapes.append(tuple(shape))
        return reorder(weight, geometry, shape)

    monkeypatch.setattr(onednn, "reorder_convolution_weight", record)
    monkeypatch.setattr(onednn, "MAX_KEPT_SHAPES", 2)
    convolution = nn.Conv2d(3, 4, 3).requires_grad_(False)
    first, second, third = (make_input(1, 3, 8, width) for width in (9, 10, 11))
    for x in (first, second, first, second, third, third, first):
        assert_close(run_packed(convolution, x), convolution(x))
    # The third made the other two forgotten; in one layout the weight is there once.
    assert [shape[3] for shape in shapes] == [9, 10, 11, 9]
    assert len(get_layouts(convolution.weight)) == 1


@needs_onednn
def test_directions_in_one_layout_are_apart() -> None:
    """A square weight and its transpose are described alike, and hold other numbers."""
    convolution = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    x = make_input(2, 16, 9, 10).requires_grad_()
    output = run_packed(convolution, x)
    (gradient,) = torch.autograd.grad(output[:, :5].sum(), x)
    (expected,) = torch.autograd.grad(convolution(x)[:, :5].sum(), x)
    assert_close(gradient, expected)
    assert_close(run_packed(convolution, x).detach(), output.detach())


# ── left to torch ──


def make_widening_network(width: int, convolutions: int) -> nn.Sequential:
    """Convolutions of 8×8×3×3 weights, and one of 8×width×3×3."""
    small = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(convolutions)]
    head = [nn.Conv2d(8, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *small, *head)


@needs_onednn
def test_a_pass_without_gradient_is_packed_where_weights_are_large_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(onednn, "MIN_PACKED_WEIGHT_ELEMENTS", 5000)
    monkeypatch.setattr(onednn, "MIN_MEAN_WEIGHT_ELEMENTS", 5000)
    shapes: list[tuple[int, ...]] = []
    get_packed_weight = onednn.get_packed_weight

    def record(weight: Tensor, geometry: Any) -> Any:
        shapes.append(tuple(weight.shape))
        return get_packed_weight(weight, geometry)

    monkeypatch.setattr(onednn, "get_packed_weight", record)
    image = torch.rand(2, 3, 12, 13)
    # 216 + 576 + 14,400 weights in three layers, and 4 · 576 more in seven.
    large, all_shapes = (200, 8, 3, 3), {(8, 3, 3, 3), (8, 8, 3, 3), (200, 8, 3, 3)}
    for convolutions, expected, packed in ((1, [large], all_shapes), (5, [], {large})):
        model = sl.load(make_widening_network(200, convolutions), size=12, device="cpu")
        model.findings  # noqa: B018 - finds what the output means, with gradients
        shapes.clear()
        with torch.no_grad():
            logits = model.run(image, ["logits"])["logits"]
        assert shapes == expected
        # A gradient runs by packed weights, of all layers where they are large in the mean.
        leaf = image.clone().requires_grad_()
        shapes.clear()
        differentiated = model.logits(leaf)
        torch.autograd.grad(differentiated[:, 0].sum(), leaf)
        assert set(shapes) == packed
        assert_close(differentiated.detach(), logits)


class NamesItsOwnWay(nn.Linear):
    """Has a method of torch's by another signature."""

    def named_parameters(self) -> Any:  # type: ignore[override]
        return super().named_parameters()


class Overwriting(nn.Module):
    """Convolutions of 1×1 and in groups whose input is written to after them, in several ways."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        features = 1.5 * self.stem(image)
        for layer in (self.point, self.grouped):
            outputs = layer(features)
            self.write(features)
            outputs += features  # writes to what no convolution has saved
            features = 0.7 * outputs
        return self.head(features.mean((2, 3)))


def write_part(features: Tensor) -> None:
    features[:, :, 2] = 0.5


WRITES: dict[str, Callable[[Tensor], object]] = {
    "method": lambda features: features.mul_(2),
    "function": torch.sigmoid_,
    "flag": lambda features: F.relu(features, True),
    "named flag": lambda features: F.hardtanh(features, inplace=True),
    "part": write_part,
    "view": lambda features: features[:, 2:5].add_(0.5),
    "out": lambda features: torch.add(features.detach(), 1, out=features.detach()),
    "keyword": lambda features: torch.sigmoid_(input=features),
    "list": lambda features: torch._foreach_mul_([features], 2.0),
    "operation": torch.ops.aten.relu_.default,
}
# In torch's default layout this writes to a copy.
WRITES_IN_CHANNELS_LAST = {
    "layout": lambda features: features.permute(0, 2, 3, 1).contiguous().mul_(2),
}


@needs_onednn
@pytest.mark.parametrize("name", [*WRITES, "nothing"])
def test_networks_that_overwrite_the_input_of_small_convolutions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    network = Overwriting(WRITES.get(name, lambda features: features * 2)).eval()
    model = sl.load(network, size=(12, 14), device="cpu")
    assert model.layer_sizes is LayerSizes.SMALL
    calls: list[int] = []
    convolve_unsaved = onednn.convolve_unsaved
    monkeypatch.setattr(
        onednn, "convolve_unsaved", lambda *args: calls.append(1) or convolve_unsaved(*args)
    )
    image = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    normalized = model.normalize(image)
    leaf = normalized.clone().requires_grad_()
    with PackingDisabled(), UnsavedInputsMode():
        (expected,) = torch.autograd.grad(network.requires_grad_(False)(leaf)[:, 1].sum(), leaf)
    model.findings  # noqa: B018
    assert model.in_place_writes == InPlaceWrites(is_known=True, found=name != "nothing")
    model.in_place_writes = InPlaceWrites()
    for _ in range(3):
        calls.clear()
        leaf = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.logits(leaf)[:, 1].sum(), leaf)
        assert_close(gradient * model.std, expected)
    assert model.in_place_writes.is_known
    assert model.in_place_writes.found == (name != "nothing")
    # What overwrites nothing goes on with torch's own convolutions.
    assert len(calls) == (0 if name == "nothing" else 3)


@needs_onednn
def test_a_pass_that_was_stopped_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = sl.load(Overwriting(lambda features: features.mul_(2)), size=(12, 14), device="cpu")
    leaf = torch.rand(1, 3, 12, 14).requires_grad_()
    model.run(leaf, ["stem"])
    assert not model.in_place_writes.is_known
    (gradient,) = torch.autograd.grad(model.logits(leaf)[:, 0].sum(), leaf)
    assert gradient.any()


class OverwritingThin(nn.Module):
    """Thin layers; the input of one is written to after it. Notes how many modes watch it."""

    def __init__(self, write: Callable[[Tensor], object], layer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.layer = layer
        self.point = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Conv2d(8, 3, 1)
        for values in (self.norm.running_mean, self.norm.bias):
            nn.init.uniform_(values)
        for values in (self.norm.running_var, self.norm.weight):
            nn.init.uniform_(values, 0.5, 2)
        self.mode_counts: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.mode_counts.append(count_function_modes())
        features = 1.5 * self.point(image)
        for name in ("norm", "grouped"):
            outputs = self.get_submodule(name)(features)
            if name == self.layer:
                self.write(features)
            features = 0.7 * outputs
        return self.head(features).mean((2, 3))


@needs_onednn
@pytest.mark.parametrize("layer", ["norm", "grouped"])
@pytest.mark.parametrize("name", [*WRITES, *WRITES_IN_CHANNELS_LAST, "nothing"])
def test_networks_of_thin_layers_are_left_alone_where_they_overwrite_nothing(
    name: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    writes = WRITES | WRITES_IN_CHANNELS_LAST
    network = OverwritingThin(writes.get(name, lambda features: features * 2), layer).eval()
    model = sl.load(network, size=(12, 14), device="cpu")
    assert model.layer_sizes is LayerSizes.THIN
    image = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    leaf = model.normalize(image).clone().requires_grad_()
    with PackingDisabled(), UnsavedInputsMode():
        (expected,) = torch.autograd.grad(network.requires_grad_(False)(leaf)[:, 1].sum(), leaf)

    # The look at what the network is shows it.
    model.findings  # noqa: B018
    assert model.in_place_writes == InPlaceWrites(is_known=True, found=name != "nothing")

    model.in_place_writes = InPlaceWrites()
    gradients: list[Tensor] = []
    counts: list[int] = []
    for _ in range(3):
        leaf = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.logits(leaf)[:, 1].sum(), leaf)
        gradients.append(gradient)
        counts.append(model.network.mode_counts[-1])
    assert_close(gradients[0] * model.std, expected)
    # Whether it is watched changes nothing, not even the rounding.
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])
    assert model.in_place_writes.found == (name != "nothing")
    assert counts == ([1, 0, 0] if name == "nothing" else [1, 1, 1])

    # Of many pixels the faster batch norm gains more than the watching takes.
    monkeypatch.setattr(onednn, "MIN_FAST_PIXELS", 2 * 12 * 14)
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.logits(leaf)[:, 1].sum(), leaf)
    assert_close(gradient * model.std, expected)
    assert model.network.mode_counts[-1] == 1
    model.logits(image[:1, :, :11].clone().requires_grad_())
    assert model.network.mode_counts[-1] == (name != "nothing")


def write_larger_maps(features: Tensor) -> None:
    if features.shape[-1] > 14:
        features.mul_(2)


@needs_onednn
@pytest.mark.parametrize("layer", ["norm", "grouped"])
def test_writes_that_occur_for_some_images_only(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    network = OverwritingThin(write_larger_maps, layer).eval()
    model = sl.load(network, size=(12, 14), device="cpu")
    image = torch.rand(1, 3, 13, 17, generator=torch.Generator().manual_seed(1))
    for number in range(2):
        values = sl.saliency(model, image[..., : 14 + 3 * number], label=1).tensors
        assert model.in_place_writes.found == (number == 1)
    leaf = model.normalize(image).clone().requires_grad_()
    with PackingDisabled(), UnsavedInputsMode():
        (expected,) = torch.autograd.grad(network.requires_grad_(False)(leaf)[:, 1].sum(), leaf)
    assert_close(values["gradient"] * model.std, expected)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixel_count", [1, onednn.MIN_FAST_PIXELS])
def test_other_precisions_may_overwrite_inputs_of_norms(
    dtype: torch.dtype, pixel_count: int
) -> None:
    network = OverwritingThin(WRITES["method"], "norm").eval().requires_grad_(False).to(dtype)
    x = make_input(2, 3, 6, 7).to(dtype).requires_grad_()
    writes = InPlaceWrites()
    gradients: list[Tensor] = []
    for _ in range(2):
        with use_packed_weights(sizes=LayerSizes.THIN, writes=writes, pixel_count=pixel_count):
            score = network(x)[:, 1].sum()
        gradients += torch.autograd.grad(score, x)
        writes.is_known = True
    assert writes.found
    network.write = lambda features: None
    (expected,) = torch.autograd.grad(network(x)[:, 1].sum(), x)
    assert_close(gradients[0], expected)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("cut", ["half", "every second", "expanded"])
def test_copied_inputs_change_no_bit(cut: str) -> None:
    norm = nn.BatchNorm2d(6).eval().requires_grad_(False)
    for statistic in (norm.running_mean, norm.running_var, norm.weight):
        nn.init.uniform_(statistic, 0.3, 2)
    leaf = make_input(2, 12, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    cuts = {
        "half": leaf[:, 6:],
        "every second": leaf[:, ::2],
        "expanded": leaf[:, :1].expand(-1, 6, -1, -1),
    }
    results: list[Tensor] = []
    for writes in (InPlaceWrites(is_known=True), InPlaceWrites()):
        with use_packed_weights(sizes=LayerSizes.THIN, writes=writes, pixel_count=1):
            output = norm(cuts[cut])
        results += [output, *torch.autograd.grad(output.square().sum(), leaf, retain_graph=True)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


def test_an_image_convolved_with_itself() -> None:
    leaf = make_input(1, 3, 6, 7).requires_grad_()
    maps = 1.5 * leaf
    with UnsavedInputsMode():
        score = F.conv2d(maps, maps.detach(), padding=1).square().sum()
    expected = F.conv2d(1.5 * leaf, maps.detach(), padding=1).square().sum()
    gradients = [torch.autograd.grad(each, leaf)[0] for each in (score, expected)]
    assert torch.equal(*gradients)


@needs_onednn
def test_small_layers_are_packed_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large dense convolutions do, and a first one whose gradient is faster by phases."""
    monkeypatch.undo()
    packed: list[nn.Module] = []
    layers: dict[Tensor, nn.Module] = {}
    get_packed_weight = onednn.get_packed_weight

    def record(weight: Tensor, geometry: Any) -> Any:
        packed.append(layers[weight])
        return get_packed_weight(weight, geometry)

    monkeypatch.setattr(onednn, "get_packed_weight", record)
    stem = nn.Conv2d(3, 8, 7, 2)
    small, dense = nn.Conv2d(8, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
    grouped, point = nn.Conv2d(96, 300, 3, groups=2), nn.Conv2d(300, 200, 1)
    network = nn.Sequential(stem, small, dense, grouped, point).requires_grad_(False)
    layers |= {layer.weight: layer for layer in network}
    x = make_input(1, 3, 19, 21).requires_grad_()
    expected = network(x)
    with use_packed_weights(sizes=LayerSizes.SMALL, writes=InPlaceWrites(is_known=True)):
        output = network(x)
    assert packed == [stem, dense]
    assert_close(output.detach(), expected.detach())
    gradients = [torch.autograd.grad(each[:, 7].sum(), x)[0] for each in (output, expected)]
    assert_close(*gradients)


def test_which_networks_gain_by_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    side = 2 * round(onednn.MIN_MEAN_WEIGHT_ELEMENTS**0.5)
    large = nn.Linear(side, side, bias=False)
    small = nn.Linear(2, 2)
    point, grouped, dense = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(80, 80, 3)
    for layers, expected in (
        ([large], LayerSizes.LARGE),
        ([NamesItsOwnWay(side, side)], LayerSizes.LARGE),
        ([nn.MultiheadAttention(8, 2), small], LayerSizes.LARGE),
        ([large, *(nn.Linear(2, 2) for _ in range(4))], LayerSizes.SMALL),
        ([nn.ReLU()], LayerSizes.SMALL),
        # Weights that are computed for each pass are never packed.
        ([nn.utils.parametrizations.weight_norm(nn.Linear(side, side))], LayerSizes.THIN),
        ([point, grouped, nn.ReLU()], LayerSizes.THIN),
        ([dense, *(nn.ReLU() for _ in range(9)), point], LayerSizes.SMALL),
        ([dense, *(nn.ReLU() for _ in range(30)), point], LayerSizes.THIN),
        ([small, *(nn.ReLU() for _ in range(15)), point], LayerSizes.SMALL),
    ):
        assert find_layer_sizes(nn.Sequential(*layers)) is expected, layers


class Counting(nn.Module):
    """Multiplies its answer by the operations that a mode of its own counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 7, 3)
        self.last = nn.Linear(7, 40)

    def forward(self, x: Tensor) -> Tensor:
        with FlopCounterMode(display=False) as counter:
            output = self.last(self.conv(x).permute(0, 2, 3, 1))
        return output * (counter.get_total_flops() / 1000)


def test_a_network_that_observes_its_own_operations() -> None:
    network = Counting().requires_grad_(False)
    x = torch.rand(2, 3, 9, 8).requires_grad_()
    expected = network(x)
    assert expected.any()
    output = run_packed(network, x)
    assert torch.equal(output, expected)
    gradients = [torch.autograd.grad(values[..., 1].sum(), x) for values in (output, expected)]
    assert torch.equal(*gradients[0], *gradients[1])


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_nested_tensors_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(frozen_layers, "MIN_PACKED_POSITIONS", 1)
    layer = nn.Linear(5, 4).requires_grad_(False)
    rows = [torch.rand(count, 5) for count in (2, 3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.strided)
    output = run_packed(layer, nested)
    for values, row in zip(output.unbind(), rows, strict=True):
        assert_close(values, layer(row))


def runs_unchanged(layer: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether neither a convolution nor a batch norm is replaced."""
    calls: list[str] = []
    monkeypatch.setattr(onednn, "get_packed_weight", lambda *_: calls.append("convolution"))
    monkeypatch.setattr(torch, "addcmul", lambda *_: calls.append("batch norm"))
    with use_packed_weights():
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
    x = torch.rand(2, 3, 8, 8, dtype=next(layer.parameters()).dtype).requires_grad_()
    assert runs_unchanged(layer, x, monkeypatch)


def test_weights_that_are_computed_for_each_pass_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)).requires_grad_(False)
    assert runs_unchanged(layer, torch.rand(1, 3, 8, 8), monkeypatch)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (5, 2)])
def test_torch_says_that_channels_do_not_fit(channels: int, groups: int) -> None:
    convolution = nn.Conv2d(4, 6, 3, groups=groups).requires_grad_(False).eval()
    image = torch.rand(2, channels, 7, 8).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=f"got {channels} channels"):
        run_packed(convolution, image)


@pytest.mark.parametrize("method", ["saliency", "gradcam", "occlusion", "trust", "inversion"])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_is_told_so(method: str, channels: int) -> None:
    layers = [nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = sl.load(nn.Sequential(*layers, nn.Linear(5, 3)), size=24)
    noun = "channel" if channels == 1 else "channels"
    with pytest.raises(sl.SightlineError, match=f"it takes {channels} {noun}: give mean="):
        getattr(sl, method)(model, torch.rand(1, 3, 24, 24))


def test_weights_made_in_inference_mode_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
        assert runs_unchanged(layer, torch.rand(1, 3, 8, 8), monkeypatch)


def test_whoever_observes_operations_sees_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    x = torch.rand(1, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        assert runs_unchanged(layer, x, monkeypatch)
    assert counter.get_total_flops() == 2 * 36 * 4 * 27
    with PackingDisabled():
        with PackingDisabled():
            pass
        assert runs_unchanged(layer, x, monkeypatch)


@needs_onednn
def test_packing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with PackingDisabled():
        pass
    layer = nn.Sequential(nn.BatchNorm2d(3)).eval().requires_grad_(False)
    calls: list[str] = []
    monkeypatch.setattr(torch, "addcmul", lambda *_: calls.append("batch norm"))
    with use_packed_weights():
        layer(torch.rand(1, 3, 8, 9).requires_grad_())
    assert calls == ["batch norm"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.usefixtures("fast_or_portable")
def test_torchs_own_transforms_go_through() -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    x = make_input(1, 3, 8, 9)
    batched = torch.func.vmap(lambda x: run_packed(layer, x))(x[None])
    assert_close(batched[0], layer(x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(run_packed(layer, dual)).tangent
    assert tangent is not None
    assert_close(tangent, F.conv2d(torch.ones_like(x), layer.weight))
