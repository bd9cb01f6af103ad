"""Units that are off, against networks whose forward pass sets them by hand."""

import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import LABELS, assert_close, small_network, smooth
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.data.store.description import describe_network
from sightline.methods.evaluation.randomization import clone_model
from sightline.models.ablation import (
    Ablation,
    format_ablation,
    parse_ablation,
)
from sightline.models.model import Model
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionWindows

IMAGES = smooth(3, side=40, seed=3)[..., :32, :]


class ByHand(nn.Module):
    """`small_network` with one layer's units replaced in its forward pass."""

    def __init__(self, layer: str, replace: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = small_network()
        self.layer = layer
        self.replace = replace

    def forward(self, x: Tensor) -> Tensor:
        for name, module in self.layers.named_children():
            x = module(x)
            if name == self.layer:
                x = self.replace(x)
        return x


class Residual(nn.Module):
    """Two blocks whose sums and activations are functional steps, one activation used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)
        self.off: dict[str, list[int]] = {}

    def set_zero(self, name: str, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, self.off.get(name, [])] = 0
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.set_zero("relu", self.relu(self.stem(x)))
        inner = self.set_zero("/relu", F.relu(self.bn(self.conv1(x)), inplace=True))
        x = self.set_zero("/add", x + inner)
        x = self.set_zero("relu:1", self.relu(x))
        x = self.set_zero("/add:1", torch.add(x, self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens with a class token, one block with attention, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patch = nn.Conv2d(3, 16, 8, stride=8)
        self.start = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 5)
        self.off: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(x), -1, -1), tokens], 1)
        tokens = self.block(tokens)
        if self.off:
            tokens = tokens.clone()
            tokens[..., self.off] = 0
        return self.head(tokens[:, 0])


def load(network: nn.Module, size: int = 32) -> Model:
    return Model(network.eval(), labels=LABELS, size=size, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool1", "conv2", "relu2", "conv3", "gap"])
def test_units_are_zero_for_everything_behind_them(layer: str) -> None:
    def set_zero(x: Tensor) -> Tensor:
        kept = torch.ones(x.shape[1])
        kept[[0, 5]] = 0
        return x * kept.view(1, -1, *[1] * (x.ndim - 2))

    model = load(small_network()).ablated({layer: [5, 0, 5]})
    expected = load(ByHand(layer, set_zero))
    torch.testing.assert_close(model.logits(IMAGES), expected.logits(IMAGES))
    feature = model.features(IMAGES, layer)[layer]
    assert not feature[:, [0, 5]].any()
    assert feature[:, [1, 2, 3, 4, 6, 7]].any()
    assert not torch.allclose(model.logits(IMAGES), load(small_network()).logits(IMAGES))


def test_the_model_itself_keeps_its_units() -> None:
    model = load(small_network())
    before = model.logits(IMAGES)
    model.ablated({"conv3": range(16)})
    assert torch.equal(model.logits(IMAGES), before)
    assert not model.ablations


@pytest.mark.parametrize("layer", ["relu", "relu:1", "/relu", "/add", "/add:1"])
def test_each_call_and_functional_step_has_units_of_its_own(layer: str) -> None:
    network = Residual()
    model = load(network).ablated({layer: [1, 4]})
    network.off = {layer: [1, 4]}
    expected = load(network)
    torch.testing.assert_close(model.logits(IMAGES), expected.logits(IMAGES))
    for name in (layer, "relu:1"):
        ours = model.features(IMAGES, name)[name]
        if name == layer:
            assert not ours[:, [1, 4]].any()
        theirs = expected.features(IMAGES, "fc")["fc"]
        torch.testing.assert_close(model.features(IMAGES, "fc")["fc"], theirs)


class UsedByItsInput(nn.Module):
    """A step that writes over its input, by which the network goes on."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.step = nn.ReLU(inplace=True)
        self.kept = nn.Dropout(0.5)
        self.head = nn.Conv2d(8, 5, 1)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        if self.spelling == "method":
            maps.relu_()
        elif self.spelling == "function":
            F.relu(maps, inplace=True)
        else:
            self.step(maps)
        # What hands on its input has written nothing to it.
        return self.head(maps + 0.5 * self.kept(maps)).mean((2, 3))


@pytest.mark.parametrize("spelling", ["method", "function", "module"])
def test_units_that_are_written_in_place_are_off_for_their_input_too(spelling: str) -> None:
    network = UsedByItsInput(spelling).eval()
    model = sl.load(network, size=(12, 14))
    image = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    step = "step" if spelling == "module" else "/relu"
    mask = torch.ones(8, 1, 1)
    mask[[1, 4]] = 0

    leaves = [image.clone().requires_grad_(), image.clone().requires_grad_()]
    rectified = network.conv(model.normalize(leaves[0])).relu() * mask
    expected = network.head(1.5 * rectified).mean((2, 3))
    logits = model.ablated({step: [1, 4]}).logits(leaves[1])
    assert_close(logits.detach(), expected.detach())
    if spelling != "module":  # its gradient needs what was written over it
        gradients = [
            torch.autograd.grad(each[:, 2].sum(), leaf)[0]
            for each, leaf in zip((expected, logits), leaves, strict=True)
        ]
        assert_close(*gradients)

    maps = network.conv(model.normalize(image)).relu()
    expected = network.head(maps + 0.5 * maps * mask).mean((2, 3))
    assert_close(model.ablated({"kept": [1, 4]}).logits(image), expected.detach())


def test_tokens_are_off_at_all_positions() -> None:
    network = Tokens()
    model = load(network).ablated({"block": [3, 15]})
    network.off = [3, 15]
    images = smooth(2, side=32, seed=1)
    torch.testing.assert_close(model.logits(images), load(network).logits(images))
    assert model.features(images, "block")["block"][..., 3].abs().max() == 0


def test_gradients_are_those_of_the_network_without_the_units() -> None:
    def set_zero(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], 0 * x[:, 2:4], x[:, 4:]], 1)

    model = load(small_network()).ablated({"relu2": [2, 3]})
    expected = load(ByHand("relu2", set_zero))
    for method in (sl.saliency, sl.gradcam):
        ours = method(model, IMAGES, label="cat").values["attribution"]
        layer = {} if method is sl.saliency else {"layer": "layers.relu3"}
        theirs = method(expected, IMAGES, label="cat", **layer).values["attribution"]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_incremental_occlusion_follows_units_that_are_off() -> None:
    image = smooth(1, side=64, seed=8)
    model = load(small_network(), 64).ablated({"conv1": [1], "conv2": [3, 4], "relu3": [0]})
    positions = [(row, column) for row in range(0, 49, 16) for column in range(0, 49, 16)]
    windows = OcclusionWindows(image, torch.full_like(image, 0.5), positions, 16)

    def choose_third(_: Tensor) -> Tensor:
        return torch.tensor([2])

    fast = score_occluded_windows(model, windows, choose_third)
    slow = score_occluded_windows(model, windows, choose_third, incremental=False)
    assert not fast.fallback
    torch.testing.assert_close(fast.scores, slow.scores, rtol=1e-4, atol=1e-5)


def test_the_mean_is_that_of_the_reference_images() -> None:
    plain = load(small_network())
    means = plain.features(IMAGES, "relu2")["relu2"].mean((0, 2, 3))

    def set_mean(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 7] = means[7]
        return x

    model = plain.ablated({"relu2": 7}, fill="mean", images=IMAGES)
    expected = load(ByHand("relu2", set_mean))
    torch.testing.assert_close(model.logits(IMAGES), expected.logits(IMAGES))


def test_resampled_units_show_one_reference_image() -> None:
    plain = load(small_network())
    images = smooth(4, side=32, seed=6)
    reference = smooth(5, side=32, seed=7)
    model = plain.ablated({"relu1": [0, 6]}, fill="resample", images=reference, seed=3)
    ours = model.features(images, "relu1")["relu1"]
    candidates = plain.features(reference, "relu1")["relu1"]
    for unit in (0, 6):
        assert torch.equal(ours[0, unit], ours[3, unit])
        assert any(torch.allclose(ours[0, unit], maps[unit], atol=1e-5) for maps in candidates)
    assert torch.equal(ours[:, 1], plain.features(images, "relu1")["relu1"][:, 1])
    other = plain.ablated({"relu1": [0, 6]}, fill="resample", images=reference, seed=4)
    assert not torch.equal(other.features(images, "relu1")["relu1"], ours)
    # An image of another size takes the nearest positions.
    assert model.logits(smooth(1, side=48, seed=1)).isfinite().all()


def test_inputs_of_layers_have_units_too() -> None:
    def set_zero(x: Tensor) -> Tensor:
        return torch.cat([x[:, :15], 0 * x[:, 15:]], 1)

    model = load(small_network()).ablated({"fc:in": [15]})
    expected = load(ByHand("flatten", set_zero))
    torch.testing.assert_close(model.logits(IMAGES), expected.logits(IMAGES))
    assert not model.features(IMAGES, "fc:in")["fc:in"][:, 15].any()


def test_ablations_add_up_and_copies_keep_them() -> None:
    both = load(small_network()).ablated({"relu1": [1], "relu3": [2]})
    one = load(small_network()).ablated({"relu1": [1]})
    model = one.ablated({"relu3": [2]})
    expected = both.logits(IMAGES)
    torch.testing.assert_close(model.logits(IMAGES), expected)
    torch.testing.assert_close(clone_model(model).logits(IMAGES), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).logits(IMAGES), expected)
    assert model.intact.logits(IMAGES).equal(load(small_network()).logits(IMAGES))
    assert [ablation.units for ablation in model.ablations] == [{"relu1": (1,)}, {"relu3": (2,)}]


def test_aliases_landmarks_and_indices_name_the_layer() -> None:
    model = sl.load()
    last = model.landmarks["last_conv"]
    expected = model.ablated({last: [3]}).logits(model.fit(sl.sample("rocket")))
    for name in ("last_conv", str(list(model.layers).index(last))):
        twin = model.ablated({name: [3]})
        assert torch.equal(twin.logits(model.fit(sl.sample("rocket"))), expected)
        assert twin.landmarks == model.landmarks


def test_results_say_which_units_are_off() -> None:
    model = load(small_network()).ablated({"conv2": [3, 1]})
    caption = sl.predictions(model, IMAGES).captions["predictions"]
    assert caption.endswith("Units 1 and 3 of conv2 are off (zero).")
    assert "units 1 and 3 of conv2 are off" in repr(model)
    assert str(Ablation({"a": (4,), "b": tuple(range(9))}, "mean")) == (
        "unit 4 of a and 9 units of b are off (mean)"
    )


def test_a_scan_of_another_network_is_another_scan() -> None:
    model = load(small_network())
    digests = {
        describe_network(each, (32, 32)).weights
        for each in (model, model.ablated({"fc": 1}), model.ablated({"fc": 2}))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"conv9": [1]}, "no layer named 'conv9'; did you mean conv"),
        ({"conv1": [8]}, "unit of conv1 is 8; it must lie between 0 and 7"),
        ({"conv1": [-1]}, "unit of conv1 is -1; it must lie between 0 and 7"),
        ({"conv1": [0.5]}, "unit is 0.5; units are whole numbers"),
        ({"conv1": []}, "no unit is named"),
        ({}, "no unit is named"),
        ({"logits": [1]}, "the logits are the network's answer"),
    ],
)
def test_bad_units_are_one_line(units: dict[str, list[int]], message: str) -> None:
    with pytest.raises(sl.SightlineError, match=message) as caught:
        load(small_network()).ablated(units)
    assert "\n" not in str(caught.value)


def test_bad_requests_are_one_line() -> None:
    model = load(small_network())
    with pytest.raises(sl.SightlineError, match="no fill named 'median'"):
        model.ablated({"conv1": [1]}, fill="median")  # type: ignore[arg-type]
    with pytest.raises(sl.SightlineError, match="turn units off first"):
        model.with_target(sl.unit("conv1", 2)).ablated({"conv1": [1]})


@pytest.mark.parametrize(
    ("texts", "units"),
    [
        (["layer4:12,40"], {"layer4": (12, 40)}),
        (["relu:1:0-3,7", "fc:in:2", "relu:1:9"], {"relu:1": (0, 1, 2, 3, 7, 9), "fc:in": (2,)}),
    ],
)
def test_units_are_read_from_text(texts: list[str], units: dict[str, tuple[int, ...]]) -> None:
    assert parse_ablation(texts) == units
    assert parse_ablation(format_ablation(units)) == units


@pytest.mark.parametrize("text", ["layer4", "layer4:", ":3", "layer4:a", "layer4:3-1", "l:1,,2"])
def test_text_that_names_no_units_is_one_line(text: str) -> None:
    with pytest.raises(sl.SightlineError, match=r"LAYER:UNIT,UNIT|ends before it begins"):
        parse_ablation([text])
