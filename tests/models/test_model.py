"""The model against the plain network: same layers, same features, same logits, and a caller's module that nothing reaches."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torchvision import models

from sightline.errors import SightlineError
from sightline.models.hooks import Layer
from sightline.models.model import Model
from sightline.models.weights.layer_names import find_family_landmarks, find_layer_aliases

FAMILIES = [
    *(
        "alexnet",
        "vgg11",
        "vgg16_bn",
        "squeezenet1_0",
        "googlenet",
        "inception_v3",
        "resnet18",
        "resnet50",
    ),
    *("mobilenet_v2", "densenet121", "convnext_tiny", "efficientnet_b0", "vit_b_16"),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def hollow(name: str, **options: Any) -> nn.Module:
    """A torchvision network that has shapes but no weights."""
    with torch.device("meta"):
        return models.get_model(
            name,
            weights=None,
            **({"init_weights": False} if name in ("googlenet", "inception_v3") else {}),
            **options,
        )


def built(name: str) -> nn.Module:
    """A torchvision network with random weights, made without its slow initialization."""
    network = hollow(name, **({"image_size": 96} if name.startswith("vit") else {})).to_empty(
        device="cpu"
    )
    torch.manual_seed(0)
    for path, value in (*network.named_parameters(), *network.named_buffers()):
        with torch.no_grad():
            if value.ndim > 1:
                value.uniform_(-1, 1).mul_((3 * 1.7 / value[0].numel()) ** 0.5)
            else:
                value.fill_(1.0 if path.endswith(("running_var", "weight")) else 0.0)
    return network


def state(network: nn.Module) -> dict[str, Any]:
    """What a caller could notice: the bits of all weights and buffers, gradients, flags, modes, hooks."""
    found: dict[str, Any] = {}
    for path, value in (*network.named_parameters(), *network.named_buffers()):
        bits = value.detach().view(torch.int32) if value.dtype == torch.float32 else value.detach()
        found[path] = (
            id(value),
            value.data_ptr(),
            int(bits.sum(dtype=torch.int64)),
            value.requires_grad,
            value.grad is None,
        )
    for path, module in network.named_modules():
        hooks = [
            dict(vars(module)[kind])
            for kind in (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_backward_hooks",
                "_backward_pre_hooks",
            )
        ]
        found[f"module {path}"] = (
            id(module),
            module.training,
            getattr(module, "inplace", None),
            hooks,
            sorted(vars(module)),
        )
    return found


def plain(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Every module call's output, cloned before anything can overwrite it, and the network's own answer."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[..., None]:
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            name = path if not calls[path] else f"{path}:{calls[path]}"
            calls[path] += 1
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                found[name] = output.clone()

        return record

    handles = [
        module.register_forward_hook(hook(path)) for path, module in network.named_modules() if path
    ]
    with torch.no_grad():
        answer = network(x)
    for handle in handles:
        handle.remove()
    return found, answer


def normalized(image: Tensor) -> Tensor:
    return (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        given, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max())
    )


# ── whole families ──

Pair = tuple[Model, Tensor, dict[str, Tensor], Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A family's model, an image, and what the plain network makes of it. Some of that network's modules are in training mode."""
    name, network = request.param, built(request.param).eval()
    image = torch.rand(
        1, 3, 96, 96 if name.startswith("vit") else 80, generator=torch.Generator().manual_seed(1)
    )
    expected, answer = plain(network, normalized(image))
    for module in list(network.modules())[::3]:
        module.training = True
    before, human = state(network), find_layer_aliases(name, network)
    model = Model(
        network, name=name, size=96, aliases=human, landmarks=find_family_landmarks(name, human)
    )
    yield model, image, expected, answer
    assert state(network) == before


def test_layers_and_features_are_those_of_the_plain_network(pair: Pair) -> None:
    model, image, expected, answer = pair
    names = list(model.layers)
    assert names == [name for name, value in expected.items() if value.ndim > 1]
    asked = ["first", "middle", "last_conv", names[len(names) // 3], "penultimate"]
    with torch.no_grad():
        whole = model.features(image, [*asked, "logits"])
        for layer in asked:
            alone = model.features(image, layer)[layer]
            close(alone, whole[layer])
            if layer != "penultimate":
                close(alone, expected[model.layer(layer)])
    head = model.module(model.layer("penultimate"))
    close(head(whole["penultimate"]), expected[model.layer("penultimate").removesuffix(":in")])
    close(whole["logits"], answer)


def test_logits_and_labels_are_those_of_the_plain_network(pair: Pair) -> None:
    model, image, _, answer = pair
    with torch.no_grad():
        close(model.logits(image), answer)
    assert torch.equal(model.choose("top", image), answer.argmax(1))
    assert (len(model.labels), model.labels[7]) == (1000, "class 7")


def test_gradients_reach_the_image_and_nothing_else(pair: Pair) -> None:
    model, image = pair[0], pair[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.features(image, "first")["first"].square().sum(), image)
    assert gradient.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


# ── names ──


@pytest.mark.parametrize(
    "name", [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
)
def test_vgg_aliases_follow_the_paper(name: str) -> None:
    """Table 1 of Simonyan & Zisserman: configurations A, B, D, E."""
    convolutions = {
        "11": (1, 1, 2, 2, 2),
        "13": (2, 2, 2, 2, 2),
        "16": (2, 2, 3, 3, 3),
        "19": (2, 2, 4, 4, 4),
    }[name[3:5]]
    channels = dict(zip(range(1, 6), (64, 128, 256, 512, 512), strict=True))
    kinds = ("conv", "bn", "relu") if name.endswith("_bn") else ("conv", "relu")
    expected = [
        f"{kind}{block}_{i}"
        for block, count in enumerate(convolutions, 1)
        for i in range(1, count + 1)
        for kind in kinds
    ]
    expected += [f"pool{block}" for block in channels]
    network = hollow(name)
    human = find_layer_aliases(name, network)
    model = Model(network, aliases=human, landmarks=find_family_landmarks(name, human))
    assert set(human) == {*expected, "fc6", "relu6", "fc7", "relu7", "fc8"}
    for alias in expected:
        layer, block = model.layers[model.layer(alias)], int(alias.split("_")[0][-1])
        side = 224 >> (block if alias.startswith("pool") else block - 1)
        assert layer.shape == (channels[block], side, side)
        assert layer.alias == alias
        assert (
            layer.kind
            == {"c": "Conv2d", "b": "BatchNorm2d", "r": "ReLU", "p": "MaxPool2d"}[alias[0]]
        )
    order = list(model.layers)
    places = [
        order.index(model.layer(f"relu{block}_{i}"))
        for block, count in enumerate(convolutions, 1)
        for i in range(1, count + 1)
    ]
    assert places == sorted(places)
    assert (
        model.layer("last_conv")
        == model.layer(f"relu5_{convolutions[4]}")
        == order[order.index(model.layer("pool5")) - 1]
    )
    assert [model.layers[model.layer(f"fc{i}")].shape for i in (6, 7, 8)] == [
        (4096,),
        (4096,),
        (1000,),
    ]
    assert model.layer("penultimate") == "classifier.6:in"


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        "squeezenet1_1",
        "resnet34",
        "resnet152",
        "densenet161",
        "convnext_base",
        "efficientnet_b3",
        "vit_b_32",
    ],
)
def test_every_alias_and_landmark_is_a_layer(name: str) -> None:
    network = hollow(name)
    human = find_layer_aliases(name, network)
    model = Model(
        network,
        size=299 if name == "inception_v3" else 224,
        aliases=human,
        landmarks=find_family_landmarks(name, human),
    )
    assert human
    for alias, path in human.items():
        assert model.layer(alias) == path
        assert model.layers[path].alias == alias
    assert set(model.landmarks) == {"first", "middle", "last_conv", "penultimate", "logits"}
    order = list(model.layers)
    places = [
        order.index(model.layer(mark).removesuffix(":in"))
        for mark in ("first", "middle", "last_conv", "penultimate")
    ]
    assert places == sorted(places)
    assert len(set(places)) == 4
    assert isinstance(model.module(model.layer("first")), nn.Conv2d)
    assert all(model.shape(layer) == model.layers[layer].shape for layer in order)
    assert model.shape("logits") == (1000,)


ALIASES = {
    "alexnet": {
        "conv1": "features.0",
        "pool2": "features.5",
        "conv5": "features.10",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    },
    "squeezenet1_0": {
        "fire2": "features.3",
        "fire4": "features.5",
        "fire5": "features.7",
        "fire9": "features.12",
        "conv10": "classifier.1",
    },
    "squeezenet1_1": {"fire2": "features.3", "fire4": "features.6", "fire9": "features.12"},
    "googlenet": {"mixed3a": "inception3a", "mixed4e": "inception4e", "mixed5b": "inception5b"},
    "inception_v3": {
        "mixed5b": "Mixed_5b",
        "mixed7c": "Mixed_7c",
        "conv2d_1a_3x3": "Conv2d_1a_3x3",
    },
    "resnet50": {
        "conv2_x": "layer1",
        "conv2_3": "layer1.2",
        "conv5_x": "layer4",
        "conv4_6": "layer3.5",
    },
    "mobilenet_v2": {
        "stem": "features.0",
        "block1": "features.1",
        "block17": "features.17",
        "head": "features.18",
    },
    "densenet121": {
        "dense1": "features.denseblock1",
        "transition3": "features.transition3",
        "dense4": "features.denseblock4",
    },
    "convnext_tiny": {
        "stem": "features.0",
        "stage1": "features.1",
        "stage2": "features.3",
        "stage4": "features.7",
    },
    "efficientnet_b0": {"stage1": "features.1", "stage7": "features.7", "head": "features.8"},
    "vit_b_16": {
        "patches": "conv_proj",
        "block0": "encoder.layers.encoder_layer_0",
        "block11": "encoder.layers.encoder_layer_11",
    },
}


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_of_the_other_families(name: str) -> None:
    human = find_layer_aliases(name, hollow(name))
    assert ALIASES[name].items() <= human.items()
    assert len(set(human.values())) == len(human)


# ── control flow ──


class Net(nn.Module):
    """A forward pass given as a function, on named children."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
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
    expected, answer = plain(network, normalized(IMAGE))
    found = model.features(IMAGE, ["relu", "relu:1", "relu:in", "logits"])
    close(found["relu"], expected["relu"])
    close(found["relu:1"], expected["relu:1"])
    close(found["relu:in"], expected["one"])
    close(found["logits"], answer)
    close(model.features(IMAGE, "relu:1")["relu:1"], expected["relu:1"])
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
    expected, answer = plain(network, normalized(IMAGE))
    model = Model(network, size=12)
    for _ in range(2):
        for asked in ("one", ["one", "two"], ["one", "two", "logits"]):
            found = model.features(IMAGE, asked)
            close(found["one"], expected["one"])
            if "two" in found:
                close(found["two"], expected["two"])
        close(found["logits"], answer)
    with torch.inference_mode():
        close(
            Model(network, size=12).features(IMAGE, ["one", "two"])["one"].clone(), expected["one"]
        )


def test_in_place_operations_leave_the_gradient_right() -> None:
    network = Net(IN_PLACE["functional"], one=conv(), two=conv(4, 4))
    image = IMAGE.clone().requires_grad_()
    found = Model(network, size=12).features(image, ["one", "two"])
    (given,) = torch.autograd.grad(found["one"].sum() + found["two"].sum(), image)
    x = normalized(image)
    one = network.get_submodule("one")(x)
    (expected,) = torch.autograd.grad(
        one.sum() + network.get_submodule("two")(one.clone().relu()).sum(), image
    )
    close(given, expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_gradient_may_end_at_a_layer(name: str) -> None:
    model = Model(Net(IN_PLACE[name], one=conv(), two=conv(4, 4)), size=12)
    slopes: list[Tensor] = []
    for image, leaf in ((IMAGE.clone().requires_grad_(), None), (IMAGE, "one")):
        found = model.run(image, ["one", "logits"], leaf=leaf)
        assert (found["one"].grad_fn is None) == (leaf is not None)
        slopes.append(torch.autograd.grad(found["logits"][:, 1].sum(), found["one"])[0])
    close(*slopes)


def test_branches_stop_at_the_deepest_wanted_layer() -> None:
    calls: list[str] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        calls.append("late")
        return pooled(self.last(torch.cat([left, right], 1)))

    model = Model(Net(forward, left=conv(), right=conv(), last=conv(8, 5)), size=12)
    assert list(model.layers) == ["left", "right", "last"]
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


# ── outputs ──


def test_outputs_in_a_tuple() -> None:
    network = Net(lambda self, x: (pooled(self.one(x)), pooled(x)), one=conv())
    assert len(Model(network, size=12).labels) == 4
    assert len(Model(network, size=12, output=0).labels) == 4
    assert len(Model(network, size=12, output=1).labels) == 3
    close(Model(network, size=12, output=1).logits(IMAGE), pooled(normalized(IMAGE)))
    with pytest.raises(SightlineError, match="output is 2; Net returns 2 values"):
        Model(network, size=12, output=2).logits(IMAGE)
    with pytest.raises(SightlineError, match="output is 'logits'; Net returns 2 values"):
        Model(network, size=12, output="logits").logits(IMAGE)


def test_outputs_in_a_dict() -> None:
    network = Net(
        lambda self, x: {"aux": pooled(x), "out": self.one(x), "loss": x.mean()}, one=conv()
    )
    close(
        Model(network, size=12).logits(IMAGE),
        pooled(network.get_submodule("one")(normalized(IMAGE))),
    )
    assert len(Model(network, size=12, output="aux").labels) == 3
    with pytest.raises(SightlineError, match="no output named 'uax'; did you mean aux"):
        Model(network, size=12, output="uax").logits(IMAGE)
    with pytest.raises(SightlineError, match="not N×classes; pick its logits with output="):
        Model(network, size=12, output="loss").logits(IMAGE)


def test_outputs_that_are_no_logits() -> None:
    with pytest.raises(SightlineError, match="Net returns Tensor, not N×classes"):
        Model(Net(lambda self, x: (x.mean(), pooled(x))), size=12).logits(IMAGE)
    with pytest.raises(SightlineError, match="Net returns NoneType, not N×classes"):
        Model(Net(lambda self, x: None), size=12).logits(IMAGE)
    model = Model(Net(lambda self, x: (self.one(x), None)[1], one=conv()), size=12)
    assert model.features(IMAGE, "one")["one"].shape == (2, 4, 12, 10)


# ── wrappings and kinds of networks ──


def small(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        conv(channels),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda network: nn.DataParallel(torch.compile(network)),
        lambda network: network,
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = small()
    model = Model(wrap(network), size=12)
    assert list(model.layers) == ["0", "1", "2", "3", "4"]
    close(model.logits(IMAGE), network(normalized(IMAGE)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "make",
    [
        torch.jit.script,
        lambda network: torch.jit.trace(network, IMAGE),
        lambda network: nn.Sequential(torch.jit.script(network[0])),
    ],
)
def test_scripted_modules_are_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        SightlineError,
        match=r"^a scripted module can't be looked into; give the eager nn.Module it was made from$",
    ):
        Model(make(small()))


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")
@pytest.mark.parametrize(
    "change",
    [
        lambda network: parametrizations.weight_norm(network[0]),
        lambda network: parametrizations.spectral_norm(network[4]),
        lambda network: parametrizations.orthogonal(network[4]),
        lambda network: nn.utils.weight_norm(network[0]),
        lambda network: nn.utils.spectral_norm(network[0]),
        lambda network: prune.l1_unstructured(network[0], "weight", 0.5),
    ],
)
def test_weights_that_are_computed(change: Callable[[nn.Sequential], Any]) -> None:
    network = small().eval()
    change(network)
    model = Model(network, size=12)
    assert list(model.layers) == ["0", "1", "2", "3", "4"]
    close(model.logits(IMAGE), network(normalized(IMAGE)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    close(model.logits(IMAGE), network(normalized(IMAGE)))


def test_weights_are_shared() -> None:
    network = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = Model(network, size=12)
    before = model.logits(IMAGE)
    with torch.no_grad():
        network[0].weight.add_(0.1)
        network[1].running_mean.add_(1)  # type: ignore[union-attr, operator]
    assert not torch.allclose(model.logits(IMAGE), before)
    close(model.logits(IMAGE), network(normalized(IMAGE)))
    assert model.module("0").weight.data_ptr() == network[0].weight.data_ptr()


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
    before, gradient = state(network), network[0].bias.grad.clone()  # type: ignore[union-attr]
    model = Model(network, size=12)
    image = IMAGE.clone().requires_grad_()
    close(model.logits(image), model.logits(image))
    model.features(image, "3")["3"].sum().backward()
    assert state(network) == before
    assert torch.equal(network[0].bias.grad, gradient)  # type: ignore[arg-type]
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_hooks_of_the_caller_do_not_run() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    network = small()
    network[0].register_forward_hook(never)
    network[1].register_forward_pre_hook(never)
    network[2].register_full_backward_hook(never)
    network.register_forward_hook(never)
    image = IMAGE.clone().requires_grad_()
    model = Model(network, size=12)
    model.logits(image).sum().backward()
    assert list(model.layers) == ["0", "1", "2", "3", "4"]
    assert [len(module._forward_hooks) for module in (network, network[0])] == [1, 1]
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.network.modules()
    )


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
    close(model.logits(IMAGE), network((gray - 0.4) / 0.3))
    for mean, std in (([0.5], [0.5, 0.5, 0.5]), ([], []), ([0.5, 0.5], [0.5, 0.5])):
        with pytest.raises(
            SightlineError, match="mean and std need one value for each of 1 or 3 channels"
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
    close(model.logits(IMAGE), pooled(normalized(IMAGE)))
    assert model.landmarks == {"logits": "logits"}
    assert Model(conv(), size=12).layers == {}
    assert Model(conv(), size=12).logits(IMAGE).shape == (2, 4)


def test_tuples_from_inner_modules() -> None:
    pair = Net(lambda self, x: (x * 2, x.mean()))
    model = Model(Net(lambda self, x: pooled(self.inner(x)[0]), inner=pair), size=12)
    assert model.layers == {"inner": Layer("inner", "Net", (3, 12, 12))}
    close(model.features(IMAGE, "inner")["inner"], normalized(IMAGE) * 2)


def test_one_image_or_many_at_any_time() -> None:
    model = Model(small(), size=12)
    together = model.features(IMAGE, ["0", "logits"])
    for i in range(2):
        alone = model.features(IMAGE[i : i + 1], ["0", "logits"])
        close(alone["0"], together["0"][i : i + 1])
        close(alone["logits"], together["logits"][i : i + 1])
    close(model.probabilities(IMAGE), together["logits"].softmax(1))


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


def test_labels_of_another_number() -> None:
    with pytest.raises(SightlineError, match="Sequential has 5 logits, but 2 labels were given"):
        Model(small(), size=12, labels=["a", "b"]).index("a")
    assert Model(small(), size=12).labels == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_unknown_layers_are_named_with_the_nearest() -> None:
    network = hollow("vgg16")
    human = find_layer_aliases("vgg16", network)
    model = Model(
        network, name="vgg16", aliases=human, landmarks=find_family_landmarks("vgg16", human)
    )
    for given, nearest in (
        ("conv53", "conv5_3"),
        ("features.299", "features.29"),
        ("last", "last_conv"),
        ("Relu4_2", "relu4_2"),
    ):
        with pytest.raises(
            SightlineError, match=f"^no layer named '{given}'; did you mean {nearest}\\?$"
        ):
            model.layer(given)
        with pytest.raises(SightlineError, match="no layer named"):
            model.shape(given)
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
    network = hollow("alexnet", num_classes=5).to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()  # what lay in memory may be NaN, which is refused at load
    with pytest.raises(
        SightlineError,
        match=r"^AlexNet can't take an image of 20×30 pixels .*; it was made for 224×224$",
    ) as caught:
        Model(network).logits(torch.rand(1, 3, 20, 30))
    assert "\n" not in str(caught.value)


def test_errors_of_the_network_itself_are_told_with_what_may_be_wrong() -> None:
    with pytest.raises(SightlineError, match=r"mat1 and mat2.*size=") as told:
        Model(nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), size=12).logits(
            torch.rand(1, 3, 12, 12)
        )
    assert isinstance(told.value.__cause__, RuntimeError)


def test_fit_is_the_networks_own_view() -> None:
    model = Model(small(), size=12, resize=16)
    assert model.fit(torch.rand(1, 3, 40, 90)).shape == (1, 3, 12, 12)
    assert model.fit(torch.rand(1, 3, 40, 90), size=24).shape == (1, 3, 24, 24)
    assert model.blank().shape == (1, 3, 12, 12)
    assert repr(model) == "Model('Sequential', 5 classes, 12 px, cpu)"
