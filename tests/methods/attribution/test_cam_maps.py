"""Maps of several layers and Guided Grad-CAM, against numpy and captum."""

import copy
import warnings

import numpy as np
import pytest
import torch
from captum.attr import GuidedGradCam
from torch import Tensor, nn
from zoo.odd_ways import ByTheGradient

import sightline as sl
from sightline.images.plotting.maps import render_heatmap
from sightline.methods.attribution.cam_maps import fuse_layer_maps

LABELS = ("ant", "bee", "cat", "dog")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LAYERS = ("relu1", "relu2", "relu3")


class Net(nn.Module):
    """Three convolutions of different resolution; every ReLU a module of its own, for captum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(5, 6, 3, stride=2), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(6, 7, 3, stride=2, padding=1), nn.ReLU()
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(self.relu3(self.conv3(x)).mean((2, 3)))


def make_network() -> Net:
    """Weights so large that no map of any class is empty in all images."""
    torch.manual_seed(4)
    network = Net()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * (2 / parameter[0].numel()) ** 0.5)
        network.head.weight[:, 0] += 1
    return network.eval()


def load(network: nn.Module) -> sl.Model:
    return sl.load(network, mean=MEAN, std=STD, labels=LABELS, size=18, device="cpu")


def make_pictures() -> Tensor:
    return torch.rand(3, 3, 18, 26, generator=torch.Generator().manual_seed(1))


class Normalized(nn.Module):
    """A network that takes images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers).to(x).view(1, 3, 1, 1) for numbers in (MEAN, STD))
        return self.network((x - mean) / std)


# ── several layers ──


def compute_enlarged_gradcams(network: Net, layer: str, label: int) -> np.ndarray:
    """Grad-CAM N×H×W by a plain forward hook in float64, enlarged."""
    network = copy.deepcopy(network).double()
    seen: list[Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output))
    scores = Normalized(network)(make_pictures().double())[:, label]
    (gradient,) = torch.autograd.grad(scores.sum(), seen[0])
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * seen[0]).sum(1, keepdim=True).clamp_min(0)
    return nn.functional.interpolate(maps, (18, 26), mode="bilinear")[:, 0].detach().numpy()


def scale_each(maps: np.ndarray) -> np.ndarray:
    """Each map N×H×W divided by its own maximum."""
    return np.stack([one / one.max() if one.max() > 0 else one for one in maps])


@pytest.mark.parametrize("fusion", ["product", "mean"])
@pytest.mark.parametrize("layers", [LAYERS, LAYERS[1:], LAYERS[:1]])
def test_several_layers_are_scaled_and_fused(fusion: str, layers: tuple[str, ...]) -> None:
    network = make_network()
    for label in range(4):
        values = sl.cam(
            load(network), make_pictures(), label=label, layers=layers, fusion=fusion
        ).values
        by_layer = [compute_enlarged_gradcams(network, layer, label) for layer in layers]
        scaled = np.stack([scale_each(maps) for maps in by_layer])
        expected = scaled.prod(0) if fusion == "product" else scaled.mean(0)
        assert np.allclose(values["attribution"].numpy(), expected, atol=1e-5)
        assert np.allclose(values["by_layer"].numpy(), np.stack(by_layer, 1), atol=1e-6)
        assert torch.equal(values["cam"], values["attribution"])
        assert torch.equal(values["map"], values["attribution"])
        assert values["cam"].min() >= 0
        assert values["cam"].max() <= 1


@pytest.mark.parametrize("kind", ["gradcam++", "layercam", "scorecam", "eigencam"])
def test_each_layer_has_the_map_that_it_has_alone(kind: str) -> None:
    model = load(make_network())
    together = sl.cam(model, make_pictures(), kind=kind, layers=LAYERS, batch=2)
    for number, layer in enumerate(LAYERS):
        alone = sl.cam(model, make_pictures(), kind=kind, layer=layer, batch=2).values
        assert torch.equal(together.values["by_layer"][:, number], alone["map"])
        assert torch.equal(together.values["label"], alone["label"])
    assert "relu1, relu2, relu3" in together.captions["cam"]


def test_each_layer_is_shown_before_the_map_and_its_overlay() -> None:
    image = make_pictures()[:1]
    result = sl.cam(load(make_network()), image, layers=LAYERS, label="dog")
    panel, by_layer = result.panels["cam"], result.values["by_layer"]
    assert panel.shape == (1, 3, 18, 6 * 26 + 5 * 6)
    for number in range(3):
        start = (number + 1) * 32
        expected = render_heatmap(by_layer[:, number])
        assert torch.equal(panel[..., start : start + 26], expected)
    assert torch.equal(panel[..., 4 * 32 : 4 * 32 + 26], render_heatmap(result.values["map"]))


def test_a_pattern_stands_for_its_layers() -> None:
    model = load(make_network())
    by_pattern = sl.cam(model, make_pictures(), layers=["relu*"])
    by_name = sl.cam(model, make_pictures(), layers=LAYERS)
    assert torch.equal(by_pattern.values["map"], by_name.values["map"])
    assert by_pattern.recipe["knobs"]["layers"] == list(LAYERS)


def test_an_empty_map_stays_empty() -> None:
    empty, full = torch.zeros(1, 4, 6), torch.rand(1, 4, 6)
    assert not fuse_layer_maps([empty, full], "product").any()
    assert torch.allclose(fuse_layer_maps([empty, full], "mean"), full / full.max() / 2)
    # Small numbers are no empty map, and what is negative does not count.
    tiny = fuse_layer_maps([1e-20 * full, -full, full], "mean")
    assert torch.allclose(tiny, 2 * full / full.max() / 3)


def test_one_layer_and_several_are_not_both_given() -> None:
    model = load(make_network())
    with pytest.raises(sl.SightlineError, match="layer is 'relu1' and layers are relu2, relu3"):
        sl.cam(model, make_pictures(), layer="relu1", layers=("relu2", "relu3"))
    with pytest.raises(sl.SightlineError, match="layers is empty"):
        sl.cam(model, make_pictures(), layers=())
    with pytest.raises(sl.SightlineError, match="no positions"):
        sl.cam(model, make_pictures(), layers=("relu3", "head"))


# ── Guided Grad-CAM ──


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("label", [1, 3])
def test_captum_agrees_on_guided_gradcam(layer: str, label: int) -> None:
    network = make_network()
    values = sl.cam(
        load(network), make_pictures(), kind="guided_gradcam", label=label, layer=layer
    ).values
    peer = Normalized(copy.deepcopy(network)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = GuidedGradCam(peer, peer.network.get_submodule(layer)).attribute(
            make_pictures().requires_grad_(), target=label, interpolate_mode="bilinear"
        )
    scale = float(expected.detach().abs().max())
    assert scale > 1e-4
    assert torch.allclose(values["per_channel"], expected.detach(), atol=1e-5 * scale)
    assert torch.equal(values["attribution"], values["per_channel"].abs().amax(1))
    assert values["relus"] == 3


def test_guided_gradcam_is_drawn_around_gray_beside_its_gradcam() -> None:
    model = load(make_network())
    image = make_pictures()[:1]
    result = sl.cam(model, image, kind="guided_gradcam", label="dog")
    plain = sl.gradcam(model, image, label="dog")
    assert torch.equal(result.values["cam"], plain.values["cam"])
    picture = result.panels["cam"][..., -26:]
    product = result.values["per_channel"]
    assert torch.equal(picture > 0.5, product > 0)
    assert torch.equal(picture < 0.5, product < 0)
    assert "Grad-CAM of dog at last_conv" in result.captions["cam"]


def test_guided_gradcam_takes_targets_and_several_layers() -> None:
    model = load(make_network())
    by_class = sl.cam(model, make_pictures(), kind="guided_gradcam", label=2, layers=LAYERS)
    by_target = sl.cam(
        model, make_pictures(), kind="guided_gradcam", target=lambda y: y[:, 2], layers=LAYERS
    )
    fused = sl.cam(model, make_pictures(), label=2, layers=LAYERS).values["map"]
    guided = sl.guided(model, make_pictures(), layer="logits", unit=2).values["gradient"]
    for result in (by_class, by_target):
        found = result.values["per_channel"]
        assert torch.allclose(found, guided * fused[:, None], atol=1e-6)


def test_without_relus_the_caption_says_so() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    result = sl.cam(load(network), make_pictures(), kind="guided_gradcam")
    assert result.values["relus"] == 0
    assert "no ReLU" in result.captions["cam"]


@pytest.mark.parametrize("layer", ["stem", "deep", "beside"])
def test_a_network_that_differentiates_by_its_own_input(layer: str) -> None:
    """The gradient that it takes has to go through the layer, and beside it."""
    torch.manual_seed(0)
    network = ByTheGradient().eval()
    model = sl.load(network, size=32)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    outputs: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    score = network(model.normalize(image).requires_grad_())[0, 3]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, outputs[0])
    expected = (gradient.mean((2, 3), keepdim=True) * outputs[0]).sum(1).relu().detach()
    cam = sl.gradcam(model, image, label=3, layer=layer).values["cam"]
    assert expected.any()
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-6)
