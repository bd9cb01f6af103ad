"""The model against the plain network: the same layers, features and logits."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.layers.capture import Layer
from sightline.models.model import Model
from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases

FAMILIES = [
    "alexnet",
    "vgg11",
    pytest.param("vgg16_bn", marks=pytest.mark.slow),
    "squeezenet1_0",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "convnext_tiny",
    "efficientnet_b0",
    "vit_b_16",
]
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def make_hollow_network(name: str, **options: Any) -> nn.Module:
    """A torchvision network that has shapes but no weights."""
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    with torch.device("meta"):
        return models.get_model(name, weights=None, **options)


def make_random_network(name: str) -> nn.Module:
    """A torchvision network with random weights, made without its slow initialization."""
    options = {"image_size": 96} if name.startswith("vit") else {}
    network = make_hollow_network(name, **options).to_empty(device="cpu")
    torch.manual_seed(0)
    for path, value in (*network.named_parameters(), *network.named_buffers()):
        with torch.no_grad():
            if value.ndim > 1:
                value.uniform_(-1, 1).mul_((3 * 1.7 / value[0].numel()) ** 0.5)
            else:
                value.fill_(1.0 if path.endswith(("running_var", "weight")) else 0.0)
    return network


def take_snapshot(network: nn.Module) -> dict[str, Any]:
    """What a caller could notice: the bits of weights, gradients, flags, modes, hooks."""
    snapshot: dict[str, Any] = {}
    for path, value in (*network.named_parameters(), *network.named_buffers()):
        bits = value.detach()
        if value.dtype == torch.float32:
            bits = bits.view(torch.int32)
        snapshot[path] = (
            id(value),
            value.data_ptr(),
            int(bits.sum(dtype=torch.int64)),
            value.requires_grad,
            value.grad is None,
        )
    for path, module in network.named_modules():
        hooks = [
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks),
            dict(module._backward_hooks),
            dict(module._backward_pre_hooks),
        ]
        inplace = getattr(module, "inplace", None)
        snapshot[f"module {path}"] = (id(module), module.training, inplace, hooks, [*vars(module)])
    return snapshot


def run_plain(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Every module call's output, cloned before anything overwrites it, and the network's own."""
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def make_hook(path: str) -> Callable[..., None]:
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            name = f"{path}:{calls[path]}" if calls[path] else path
            calls[path] += 1
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                outputs[name] = output.clone()

        return record

    handles = [
        module.register_forward_hook(make_hook(path))
        for path, module in network.named_modules()
        if path
    ]
    with torch.no_grad():
        network_output = network(x)
    for handle in handles:
        handle.remove()
    return outputs, network_output


def normalize(image: Tensor) -> Tensor:
    return (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def assert_close(value: Tensor, expected: Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5 * scale)


# ── whole families ──


@dataclass
class Family:
    """A family's model, an image, and what the plain network gives for it."""

    model: Model
    image: Tensor
    outputs: dict[str, Tensor]
    logits: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """One of the families. Some modules of the caller's network are in training mode."""
    name = request.param
    network = make_random_network(name).eval()
    size = (96, 96) if name.startswith("vit") else (80, 88)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    outputs, logits = run_plain(network, normalize(image))
    for module in list(network.modules())[::3]:
        module.training = True
    snapshot = take_snapshot(network)
    aliases = find_layer_aliases(name, network)
    landmarks = find_family_landmarks(name, aliases)
    model = Model(network, name=name, size=96, aliases=aliases, landmarks=landmarks)
    yield Family(model, image, outputs, logits)
    assert take_snapshot(network) == snapshot


def test_layers_and_features_are_those_of_the_plain_network(family: Family) -> None:
    model = family.model
    # Hooks see no functional steps.
    names = [layer.name for layer in model.layers.values() if not layer.step]
    assert names == [name for name, value in family.outputs.items() if value.ndim > 1]
    layers = ["first", "middle", "last_conv", names[len(names) // 3], "penultimate"]
    with torch.no_grad():
        together = model.features(family.image, [*layers, "logits"])
        for layer in layers:
            alone = model.features(family.image, layer)[layer]
            assert_close(alone, together[layer])
            is_module_call = model.layer(layer) in family.outputs
            if layer != "penultimate" and is_module_call:
                assert_close(alone, family.outputs[model.layer(layer)])
    head = model.module(model.layer("penultimate"))
    head_output = family.outputs[model.layer("penultimate").removesuffix(":in")]
    assert_close(head(together["penultimate"]), head_output)
    assert_close(together["logits"], family.logits)


def test_logits_and_labels_are_those_of_the_plain_network(family: Family) -> None:
    model = family.model
    with torch.no_grad():
        assert_close(model.logits(family.image), family.logits)
    assert torch.equal(model.choose("top", family.image), family.logits.argmax(1))
    assert (len(model.labels), model.labels[7]) == (1000, "class 7")


def test_gradients_reach_the_image_and_nothing_else(family: Family) -> None:
    image = family.image.clone().requires_grad_()
    features = family.model.features(image, "first")["first"]
    (gradient,) = torch.autograd.grad(features.square().sum(), image)
    assert gradient.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in family.model.network.parameters())


# ── control flow ──


class SharedFunction:
    """A function that a copy of the network does not copy, so that a test sees its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedFunction":
        return self


class Net(nn.Module):
    """A forward pass given as a function, on named children."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = SharedFunction(function)
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(before: int = 3, after: int = 4) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


IMAGE = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def test_a_module_called_several_times() -> None:
    network = Net(
        lambda self, x: pooled(self.relu(self.two(self.relu(self.one(x))) + 0.1)),
        one=conv(),
        two=conv(4, 4),
        relu=nn.ReLU(inplace=True),
    )
    model = Model(network, size=12)
    assert list(model.layers) == ["one", "relu", "two", "relu:1"]
    expected, logits = run_plain(network, normalize(IMAGE))
    features = model.features(IMAGE, ["relu", "relu:1", "relu:in", "logits"])
    assert_close(features["relu"], expected["relu"])
    assert_close(features["relu:1"], expected["relu:1"])
    assert_close(features["relu:in"], expected["one"])
    assert_close(features["logits"], logits)
    assert_close(model.features(IMAGE, "relu:1")["relu:1"], expected["relu:1"])
    assert model.shape("relu:1") == model.shape("relu:in") == (4, 12, 12)
    with pytest.raises(SightlineError, match="no layer named 'relu:2'; did you mean relu"):
        model.features(IMAGE, "relu:2")


IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "functional": lambda self, x: pooled(self.two(F.relu(self.one(x), inplace=True))),
    "method": lambda self, x: pooled(self.two(self.one(x).relu_())),
    "through a view": lambda self, x: (y := self.one(x), y[:, :2].mul_(3), pooled(self.two(y)))[-1],
    "later": lambda self, x: (y := self.one(x), z := self.two(y), y.zero_(), pooled(z))[-1],
    "residual": lambda self, x: (y := self.one(x), y.add_(self.two(y)), pooled(y))[-1],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_features_are_those_before_an_operation_in_place(name: str) -> None:
    network = Net(IN_PLACE[name], one=conv(), two=conv(4, 4))
    expected, logits = run_plain(network, normalize(IMAGE))
    model = Model(network, size=12)
    for _ in range(2):
        for layers in ("one", ["one", "two"], ["one", "two", "logits"]):
            features = model.features(IMAGE, layers)
            assert_close(features["one"], expected["one"])
            if "two" in features:
                assert_close(features["two"], expected["two"])
        assert_close(features["logits"], logits)
    with torch.inference_mode():
        assert_close(
            Model(network, size=12).features(IMAGE, ["one", "two"])["one"].clone(), expected["one"]
        )


def test_in_place_operations_leave_the_gradient_right() -> None:
    network = Net(IN_PLACE["functional"], one=conv(), two=conv(4, 4))
    image = IMAGE.clone().requires_grad_()
    features = Model(network, size=12).features(image, ["one", "two"])
    (gradient,) = torch.autograd.grad(features["one"].sum() + features["two"].sum(), image)
    x = normalize(image)
    one = network.get_submodule("one")(x)
    (expected,) = torch.autograd.grad(
        one.sum() + network.get_submodule("two")(one.clone().relu()).sum(), image
    )
    assert_close(gradient, expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_gradient_may_end_at_a_layer(name: str) -> None:
    model = Model(Net(IN_PLACE[name], one=conv(), two=conv(4, 4)), size=12)
    gradients: list[Tensor] = []
    for image, leaf in ((IMAGE.clone().requires_grad_(), None), (IMAGE, "one")):
        features = model.run(image, ["one", "logits"], leaf=leaf)
        assert (features["one"].grad_fn is None) == (leaf is not None)
        gradients.append(torch.autograd.grad(features["logits"][:, 1].sum(), features["one"])[0])
    assert_close(*gradients)


def test_a_callback_sees_each_layer_before_the_network_goes_on() -> None:
    events: list[str] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.one(x)
        events.append("network")
        return pooled(self.two(x))

    model = Model(Net(forward, one=conv(), two=conv(4, 4)), size=12)
    assert not model.findings.runs_one_by_one
    for context in (torch.enable_grad(), torch.inference_mode()):
        events.clear()
        with context:
            outputs = model.run(IMAGE, ["two", "one"], on_layer=lambda name, _: events.append(name))
        assert events == ["one", "network", "two"]
        assert set(outputs) == {"one", "two"}


def test_branches_stop_at_the_deepest_wanted_layer() -> None:
    calls: list[str] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        calls.append("late")
        return pooled(self.last(torch.cat([left, right], 1)))

    model = Model(Net(forward, left=conv(), right=conv(), last=conv(8, 5)), size=12)
    assert list(model.layers) == ["left", "right", "/cat", "last"]
    assert not model.findings.runs_one_by_one  # found once, by running it
    calls.clear()
    assert list(model.features(IMAGE, ["right", "left"])) == ["right", "left"]
    assert not calls
    model.features(IMAGE, "last")
    assert calls == ["late"]
    assert model.features(IMAGE, []) == {}
    assert list(model.features(IMAGE, ["first", "left"])) == ["first", "left"]


def test_control_flow_that_depends_on_the_size() -> None:
    model = Model(
        Net(
            lambda self, x: pooled(self.two(self.one(x)) if x.shape[-1] > 20 else self.one(x)),
            one=conv(),
            two=conv(4, 4),
        ),
        size=32,
    )
    assert list(model.layers) == ["one", "two"]
    assert model.features(IMAGE, "one")["one"].shape == (2, 4, 12, 10)


def small(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        conv(channels),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


# ── outputs ──


def test_the_logits_are_the_chosen_output() -> None:
    network = Net(lambda self, x: (pooled(self.one(x)), pooled(x)), one=conv())
    assert len(Model(network, size=12).labels) == 4
    model = Model(network, size=12, output=1)
    assert len(model.labels) == 3
    assert_close(model.logits(IMAGE), pooled(normalize(IMAGE)))
    with pytest.raises(SightlineError, match="output is 2; Net returns 2 values"):
        Model(network, size=12, output=2).logits(IMAGE)


def test_scores_of_every_position_are_averaged() -> None:
    network = Net(lambda self, x: {"aux": pooled(x), "out": self.one(x)}, one=conv())
    expected = pooled(network.get_submodule("one")(normalize(IMAGE)))
    assert_close(Model(network, size=12).logits(IMAGE), expected)


def test_a_network_without_logits_has_features() -> None:
    model = Model(Net(lambda self, x: (self.one(x), None)[1], one=conv()), size=12)
    assert model.features(IMAGE, "one")["one"].shape == (2, 4, 12, 10)
    with pytest.raises(SightlineError, match="Net returns NoneType, not N×classes"):
        model.logits(IMAGE)


# ── kinds of networks ──


def test_a_network_in_training_stays_as_it_is() -> None:
    network = nn.Sequential(
        conv(),
        nn.BatchNorm2d(4),
        nn.Dropout(),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).train()
    network(IMAGE).sum().backward()
    network[0].weight.requires_grad_(False)
    before, gradient = take_snapshot(network), network[0].bias.grad.clone()  # type: ignore[union-attr]
    model = Model(network, size=12)
    image = IMAGE.clone().requires_grad_()
    assert_close(model.logits(image), model.logits(image))
    model.features(image, "3")["3"].sum().backward()
    assert take_snapshot(network) == before
    assert torch.equal(network[0].bias.grad, gradient)  # type: ignore[arg-type]
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_hooks_are_gone_after_an_error() -> None:
    model = Model(nn.Sequential(conv(), nn.Flatten(), nn.Linear(4 * 144, 5)), size=12)
    with pytest.raises(SightlineError, match="can't take an image of 12×10 pixels"):
        model.features(IMAGE, ["0", "2"])
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.network.modules()
    )
    assert model.features(model.blank(), "2")["2"].shape == (1, 5)


def test_a_network_of_gray_pictures() -> None:
    network = small(1)
    model = Model(network, size=12, mean=[0.4], std=[0.3])
    gray = (IMAGE * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert_close(model.logits(IMAGE), network((gray - 0.4) / 0.3))
    for mean, std in (([0.5], [0.5, 0.5, 0.5]), ([], []), (0.5, [0.5]), ("0.5", [0.5])):
        with pytest.raises(
            SightlineError, match=r"mean and std need one value for each channel|give a list"
        ):
            Model(network, mean=mean, std=std)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_another_precision_get_images_of_theirs(
    precision: torch.dtype, channels: int
) -> None:
    network = small(channels).to(precision)
    image = IMAGE.clone().requires_grad_()
    logits = Model(network, size=12, mean=MEAN[:channels], std=STD[:channels]).logits(image)
    assert logits.dtype == precision
    logits.sum().backward()
    assert image.grad is not None
    assert image.grad.dtype == torch.float32


def test_networks_without_weights_or_layers() -> None:
    model = Model(nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=12)
    assert_close(model.logits(IMAGE), pooled(normalize(IMAGE)))
    assert model.landmarks == {"logits": "logits"}
    assert Model(conv(), size=12).layers == {}
    assert Model(conv(), size=12).logits(IMAGE).shape == (2, 4)


def test_tuples_from_inner_modules() -> None:
    pair = Net(lambda self, x: (x * 2, x.mean()))
    model = Model(Net(lambda self, x: pooled(self.inner(x)[0]), inner=pair), size=12)
    assert model.layers == {"inner": Layer("inner", "Net", (3, 12, 12))}
    assert_close(model.features(IMAGE, "inner")["inner"], normalize(IMAGE) * 2)


def test_one_image_or_many_at_any_time() -> None:
    model = Model(small(), size=12)
    together = model.features(IMAGE, ["0", "logits"])
    for i in range(2):
        alone = model.features(IMAGE[i : i + 1], ["0", "logits"])
        assert_close(alone["0"], together["0"][i : i + 1])
        assert_close(alone["logits"], together["logits"][i : i + 1])
    assert_close(model.probabilities(IMAGE), together["logits"].softmax(1))


# ── labels and errors ──

LABELS = ("tabby cat", "tiger cat", "goose", "golf ball", "Crane")


def test_labels_by_number_name_and_part() -> None:
    model = Model(small(), size=12, labels=LABELS)
    assert [
        model.index(label) for label in (0, "4", "goose", "TIGER cat", "tabby", "crane", "golf")
    ] == [0, 4, 2, 1, 0, 4, 3]
    assert model.choose("goose", IMAGE).tolist() == [2, 2]
    assert torch.equal(model.choose("top", IMAGE), model.logits(IMAGE).argmax(1))


@pytest.mark.parametrize(
    ("label", "error"),
    [
        (5, r"label is 5; Sequential has classes 0 to 4"),
        (-1, r"label is -1; Sequential has classes 0 to 4"),
        ("17", r"label is 17; Sequential has classes 0 to 4"),
        ("cat", r"no label named 'cat'; (did you mean|choose from) ta?i?bb?y?g?e?r? cat"),
        ("gose", r"no label named 'gose'; did you mean goose\?"),
        (
            "zebra",
            r"no label named 'zebra'; choose from tabby cat, tiger cat, goose, golf ball, Crane",
        ),
    ],
)
def test_labels_that_are_not_there(label: int | str, error: str) -> None:
    model = Model(small(), size=12, labels=LABELS)
    with pytest.raises(SightlineError, match=error):
        model.index(label)
    with pytest.raises(SightlineError, match=error):
        model.choose(label, IMAGE)


def test_the_exact_spelling_counts_first() -> None:
    names = ("Cardigan", "cardigan", "1", "crane", "crane", "Ostrich")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, len(names)))
    model = Model(network, size=12, labels=names)
    assert [model.index(label) for label in ("Cardigan", "cardigan", "1", 1, "5", "ostrich")] == [
        0,
        1,
        2,
        1,
        5,
        5,
    ]
    for label, numbers in (("crane", "3 and 4"), ("CARDIGAN", "0 and 1"), ("Crane", "3 and 4")):
        with pytest.raises(SightlineError, match=f"2 classes of that name: .*{numbers}"):
            model.index(label)


def test_labels_of_another_number() -> None:
    with pytest.raises(SightlineError, match="Sequential has 5 logits, but 2 labels were given"):
        Model(small(), size=12, labels=["a", "b"]).index("a")
    assert Model(small(), size=12).labels == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_unknown_layers_are_named_with_the_nearest() -> None:
    network = make_hollow_network("vgg16")
    human = find_layer_aliases("vgg16", network)
    model = Model(
        network, name="vgg16", aliases=human, landmarks=find_family_landmarks("vgg16", human)
    )
    for name, nearest in (
        ("conv53", "conv5_3"),
        ("features.299", "features.29"),
        ("last", "last_conv"),
        ("Relu4_2", "relu4_2"),
    ):
        with pytest.raises(
            SightlineError, match=f"^no layer named '{name}'; did you mean {nearest}\\?$"
        ):
            model.layer(name)
        with pytest.raises(SightlineError, match="no layer named"):
            model.shape(name)
    with pytest.raises(SightlineError, match="no layer named 'conv53'"):
        model.features(torch.rand(1, 3, 224, 224), ["conv5_3", "conv53"])


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (
            torch.rand(1, 3, 8, 8) * 4 - 2,
            r"an image is N×3×H×W in \[0, 1\]; this tensor is \(1, 3, 8, 8\) in \[-",
        ),
        (torch.rand(3, 8, 8), r"this tensor is \(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), r"this tensor is \(1, 1, 8, 8\)"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_image_is_refused(image: Tensor, error: str) -> None:
    model = Model(small(), size=12)
    for ask in (model.logits, model.probabilities, lambda x: model.features(x, "0"), model.fit):
        with pytest.raises(SightlineError, match=error):
            ask(image)


def test_images_that_are_too_small() -> None:
    network = make_hollow_network("alexnet", num_classes=5).to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()  # what lay in memory may be NaN, which is refused at load
    with pytest.raises(
        SightlineError,
        match=r"^AlexNet can't take an image of 20×30 pixels .*; it was made for 224×224$",
    ) as caught:
        Model(network).logits(torch.rand(1, 3, 20, 30))
    assert "\n" not in str(caught.value)


def test_errors_of_the_network_itself_are_reported_with_what_may_be_wrong() -> None:
    with pytest.raises(SightlineError, match=r"mat1 and mat2.*size=") as caught:
        Model(nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), size=12).logits(
            torch.rand(1, 3, 12, 12)
        )
    assert isinstance(caught.value.__cause__, RuntimeError)


def resize_and_crop(image: Tensor, short_side: int, side: int) -> Tensor:
    """Pillow's antialiased bilinear resizing to a short side, and the square in the middle."""
    _, _, height, width = image.shape
    scale = short_side / min(height, width)
    rows = round(height * scale)
    columns = round(width * scale)
    top = (rows - side) // 2
    left = (columns - side) // 2
    cropped: list[Tensor] = []
    for channel in image[0]:
        picture = Image.fromarray(channel.numpy())
        resized = np.array(picture.resize((columns, rows), Image.Resampling.BILINEAR))
        cropped.append(torch.from_numpy(resized)[top : top + side, left : left + side])
    return torch.stack(cropped)[None]


@pytest.mark.parametrize(("height", "width"), [(30, 53), (58, 20), (9, 14)])
@pytest.mark.parametrize(("size", "short_side", "side"), [(None, 20, 15), (24, 32, 24), (6, 8, 6)])
def test_fit_resizes_the_short_side_and_crops_the_centre(
    height: int, width: int, size: int | None, short_side: int, side: int
) -> None:
    """`size` 15 and `resize` 20: the short side becomes 4/3 of the crop's side."""
    model = Model(small(), size=15, resize=20)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    expected = resize_and_crop(image, short_side, side)
    torch.testing.assert_close(model.fit(image, size=size), expected, rtol=0, atol=1e-5)


def test_fit_of_a_very_long_image_is_its_middle() -> None:
    model = Model(small(), size=15, resize=20)
    image = torch.rand(1, 3, 30, 400, generator=torch.Generator().manual_seed(2))
    middle = image[..., 155:245]
    assert torch.equal(model.fit(image), model.fit(middle))
    assert torch.equal(model.fit(image.mT), model.fit(middle.mT))


def test_fit_needs_no_resize() -> None:
    image = torch.rand(2, 3, 15, 21, generator=torch.Generator().manual_seed(2))
    assert torch.equal(Model(small(), size=15).fit(image), image[..., 3:18])
    assert torch.equal(Model(small(), size=15, resize=7).fit(image), image[..., 3:18])


def test_blank_is_gray() -> None:
    assert torch.equal(Model(small(), size=12).blank(), torch.full((1, 3, 12, 12), 0.5))


# ── how a model is shown ──


class TableReader(HTMLParser):
    """Reads the rows of all tables, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def test_a_model_is_one_line() -> None:
    expected = (
        "Model('Sequential', logits of 5 classes, 12 px, mean (0.485, 0.456, 0.406), "
        "std (0.229, 0.224, 0.225), cpu)"
    )
    assert repr(Model(small(), size=12)) == expected


def test_in_a_notebook_a_model_shows_its_layers_and_landmarks() -> None:
    model = Model(small(), size=12, aliases={"conv1": "0"})
    page = model._repr_html_()
    reader = TableReader()
    reader.feed(page)
    assert reader.rows == [
        ["layer", "kind", "shape", "alias"],
        ["0", "Conv2d", "4×12×12", "conv1"],
        ["1", "ReLU", "4×12×12", ""],
        ["2", "AdaptiveAvgPool2d", "4×1×1", ""],
        ["3", "Flatten", "4", ""],
        ["4", "Linear", "5", ""],
        ["landmark", "layer"],
        *[list(item) for item in model.landmarks.items()],
    ]
    assert ["penultimate", "4:in"] in reader.rows
    assert repr(model) in re.sub("<[^>]*>", "", page).replace("&#x27;", "'")
    assert reader.tags <= {"p", "code", "div", "table", "tr", "th", "td"}
    assert reader.attributes <= {"style"}
    assert "url(" not in page


def test_names_are_escaped_in_a_notebook() -> None:
    alias = "<script>alert('a')</script> & more"
    network = Net(lambda self, x: pooled(self.one(x)), one=conv())
    model = Model(network, size=12, name="<b>", aliases={alias: "one"}, landmarks={"<i>": "one"})
    reader = TableReader()
    reader.feed(model._repr_html_())
    assert ["one", "Conv2d", "4×12×12", alias] in reader.rows
    assert ["<i>", "one"] in reader.rows
    assert not reader.tags & {"script", "b", "i"}


def test_one_label_for_each_image() -> None:
    model = Model(small(), size=12, labels=LABELS)
    assert model.choose(("goose", 0), IMAGE).tolist() == [2, 0]
    tops = model.choose("top", IMAGE).tolist()
    assert model.choose(["top", "top"], IMAGE).tolist() == tops
    assert model.choose(("Crane", "top"), IMAGE, model.logits(IMAGE)).tolist() == [4, tops[1]]
    with pytest.raises(SightlineError, match="label has 3 classes for 2 images"):
        model.choose((0, 1, 2), IMAGE)
    with pytest.raises(SightlineError, match="no label named 'zebra'"):
        model.choose((0, "zebra"), IMAGE)


def test_a_part_of_several_names_lists_them_with_their_numbers() -> None:
    model = Model(small(), size=12, labels=LABELS)
    with pytest.raises(SightlineError, match=r"choose from tabby cat \(0\), tiger cat \(1\), of"):
        model.index("cat")


def test_fit_reads_files_and_makes_a_batch_of_a_list(tmp_path: Path) -> None:
    model = Model(small(), size=12, labels=LABELS)
    images = [smooth(side=40)[..., :30], smooth(side=36, seed=1)]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for image, path in zip(images, paths, strict=True):
        sl.write(image, path)
    expected = torch.cat([model.fit(sl.read(path)) for path in paths])
    assert torch.equal(model.fit(paths), expected)
    assert torch.equal(model.fit([str(paths[0]), sl.read(paths[1])]), expected)
    assert torch.equal(model.fit(str(paths[1])), expected[1:])
    with pytest.raises(SightlineError, match="the list of images is empty"):
        model.fit([])
    with pytest.raises(SightlineError, match=r"no\.png: no such file"):
        model.fit([paths[0], tmp_path / "no.png"])


class OwnGradient(nn.Module):
    """An energy model: its answer is a gradient that it computes itself, wherever it is run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            features = self.conv(x).mean((2, 3))
            if not features.requires_grad:
                features = features.detach().requires_grad_()
            energy = features.pow(4).sum()
            return torch.autograd.grad(energy, features, create_graph=True)[0]


def test_a_network_that_turns_gradients_on_by_itself() -> None:
    network = OwnGradient().eval()
    model = Model(network, size=(10, 14), mean=(0,) * 3, std=(1,) * 3)
    image = torch.rand(2, 3, 10, 14, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = model.logits(image)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, 4 * network.conv(image).mean((2, 3)).pow(3).detach())
    leaf = image.clone().requires_grad_()
    assert torch.autograd.grad(model.logits(leaf)[:, 1].sum(), leaf)[0].abs().max() > 0
