"""Eight class activation maps, each derived again in float64, and the identities between them."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.images.plotting.maps import render_heatmap, render_signed_map

LABELS = ("ant", "bee", "cat")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
KINDS = ("cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "scorecam", "eigencam")
SIGNED = ("cam", "eigencam")


class Net(nn.Module):
    """Ends in global average pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 5, 3, padding=1),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.Conv2d(6, 7, 3, padding=1),
        )
        self.relu, self.head = nn.ReLU(), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(self.relu(self.conv3(x)).mean((2, 3)))


class Flat(nn.Module):
    """Ends in a linear layer on every position, so no class activation map exists."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = (
            nn.Conv2d(3, 5, 3, stride=2),
            nn.ReLU(),
            nn.Linear(5 * 49, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).flatten(1))


class Tokens(nn.Module):
    """A small transformer: class token, patch tokens, one attention, a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cls, self.norm1 = (
            nn.Conv2d(3, 8, 4, stride=4),
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.LayerNorm(8),
        )
        self.q, self.k, self.v, self.head = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm1(
            torch.cat(
                [self.cls.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1
            )
        )
        weights = (self.q(tokens) @ self.k(tokens).transpose(1, 2)).softmax(2)
        return self.head((tokens + weights @ self.v(tokens))[:, 0])


def network(make: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(3)
    return make().eval()


def loaded(net: nn.Module) -> sl.Model:
    return sl.load(net, mean=MEAN, std=STD, labels=LABELS, size=16, device="cpu")


def pictures(height: int = 16, width: int = 20) -> Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def normalized(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (image.double() - mean) / std


def watched(net: nn.Module, layer: str, label: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Channels and gradient of each picture in float64, K×h×w, by a plain forward hook."""
    net, seen = copy.deepcopy(net).double(), []
    net.get_submodule(layer).register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    for image in pictures():
        score = net(normalized(image[None]))[0, label]
        (gradient,) = torch.autograd.grad(score, seen[-1])
        yield seen[-1][0].detach().numpy(), gradient[0].numpy()


def literal(kind: str, maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The papers' formulas, position by position."""
    channels, height, width = maps.shape
    positions = [(y, x) for y in range(height) for x in range(width)]
    map_ = np.zeros((height, width))
    for k in range(channels):
        if kind == "gradcam":
            weight = sum(gradients[k, y, x] for y, x in positions) / len(positions)
        elif kind == "xgradcam":
            total = sum(maps[k, y, x] for y, x in positions)
            weight = (
                sum(maps[k, y, x] / total * gradients[k, y, x] for y, x in positions)
                if total
                else 0.0
            )
        elif kind == "gradcam++":
            total, weight = sum(maps[k, y, x] for y, x in positions), 0.0
            for y, x in positions:
                g = gradients[k, y, x]
                if g > 0:
                    weight += g**2 / (2 * g**2 + total * g**3) * g
        for y, x in positions:
            g = gradients[k, y, x]
            share = (
                {"hirescam": g, "layercam": max(g, 0.0)}[kind]
                if kind in ("hirescam", "layercam")
                else weight
            )
            map_[y, x] += share * maps[k, y, x]
    return np.maximum(map_, 0)


@pytest.mark.parametrize("kind", ["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"])
@pytest.mark.parametrize("layer", ["conv2", "relu"])
def test_kinds_by_gradient_are_their_formulas(kind: str, layer: str) -> None:
    net = network()
    for label in range(3):
        found = sl.cam(loaded(net), pictures(), kind=kind, label=label, layer=layer).values["cam"]
        for i, (maps, gradients) in enumerate(watched(net, layer, label)):
            assert np.allclose(
                found[i].numpy(), literal(kind, maps, gradients), atol=1e-5, rtol=1e-3
            )
    assert found.min() >= 0


def test_cam_is_the_head_at_every_position() -> None:
    net = network()
    for label in range(3):
        found = sl.cam(loaded(net), pictures(), kind="cam", label=label).values["cam"]
        for i, (maps, _) in enumerate(watched(net, "relu", label)):
            expected = np.einsum("k,khw->hw", net.head.weight[label].detach().numpy(), maps)
            assert np.allclose(found[i].numpy(), expected, atol=1e-6)
        scores = loaded(net).logits(pictures())[:, label].detach()
        assert torch.allclose(
            found.mean((1, 2)) + net.head.bias[label].detach(), scores, atol=1e-5
        ), "it adds up to the score"


def test_after_the_last_convolution_of_a_pooled_network_the_kinds_are_one() -> None:
    model = loaded(network())
    for label in range(3):
        cam, grad, hires, xgrad = (
            sl.cam(model, pictures(), kind=kind, label=label).values["cam"]
            for kind in ("cam", "gradcam", "hirescam", "xgradcam")
        )
        assert torch.allclose(grad, cam.relu() / (7 * 9), atol=1e-6)
        assert torch.allclose(hires, grad, atol=1e-6)
        assert torch.allclose(xgrad, grad, atol=1e-6)


def test_gradcam_is_gradcam() -> None:
    model = loaded(network())
    for layer in ("conv1", "relu", "last_conv"):
        one, other = (
            sl.cam(model, pictures(), layer=layer),
            sl.gradcam(model, pictures(), layer=layer),
        )
        assert all(
            torch.equal(one.values[name], other.values[name]) for name in ("cam", "map", "label")
        )
        assert torch.equal(one.panels["cam"], other.panels["gradcam"])
        assert one.captions["cam"] == other.captions["gradcam"]


@pytest.mark.parametrize("channels", [None, 1, 3, 99])
def test_scorecam_is_its_loop(channels: int | None) -> None:
    net = network()
    with torch.no_grad():
        net.conv3.weight[2] = 0  # a channel that is the same everywhere makes no mask
        net.conv3.bias[2] = 0.3
    found = sl.cam(
        loaded(net), pictures(), kind="scorecam", label=1, channels=channels, batch=2
    ).values["cam"]
    double = copy.deepcopy(net).double()
    for i, (maps, _) in enumerate(watched(net, "relu", 1)):
        order = sorted(
            (k for k in range(7) if k != 2 and maps[k].std() > 0),
            key=lambda k, maps=maps: -maps[k].var(),
        )[:channels]
        scores = []
        for k in order:
            large = nn.functional.interpolate(
                torch.from_numpy(maps[k])[None, None], size=(16, 20), mode="bilinear"
            )
            mask = (large - large.min()) / (large.max() - large.min())
            with torch.no_grad():
                scores.append(double(normalized(pictures()[i : i + 1]) * mask)[0, 1].item())
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = np.maximum(
            sum(weight * maps[k] for weight, k in zip(weights, order, strict=True)), 0
        )
        assert np.allclose(found[i].numpy(), expected, atol=1e-5)
    assert found.max() > 0


def test_scorecam_does_not_depend_on_its_batches() -> None:
    model = loaded(network())
    one, all_ = (
        sl.cam(model, pictures(), kind="scorecam", batch=batch).values["cam"] for batch in (1, None)
    )
    assert torch.allclose(one, all_, atol=1e-6)


@pytest.mark.parametrize("layer", ["conv2", "relu"])
def test_eigencam_is_the_first_principal_component(layer: str) -> None:
    net = network()
    found = sl.cam(loaded(net), pictures(), kind="eigencam", layer=layer).values["cam"]
    assert torch.equal(
        found, sl.cam(loaded(net), pictures(), kind="eigencam", layer=layer, label=2).values["cam"]
    )
    for i, (maps, _) in enumerate(watched(net, layer, 0)):
        flat = maps.reshape(len(maps), -1).T
        values, vectors = np.linalg.eigh(flat.T @ flat)
        expected = (flat @ vectors[:, values.argmax()]).reshape(maps.shape[1:])
        expected *= 1 if expected.sum() > 0 else -1
        assert np.allclose(found[i].numpy(), expected, atol=1e-4)
    if layer == "relu":
        assert found.min() >= -1e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cam"])
def test_tokens_are_laid_on_their_grid(kind: str) -> None:
    net = network(Tokens)
    values = sl.cam(loaded(net), pictures(), kind=kind, label=1).values
    assert values["cam"].shape == (3, 4, 5)
    assert values["map"].shape == (3, 16, 20)
    if kind in ("gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"):
        for i, (tokens, gradients) in enumerate(watched(net, "norm1", 1)):
            laid, laid_slopes = (value[1:].T.reshape(8, 4, 5) for value in (tokens, gradients))
            assert np.allclose(
                values["cam"][i].numpy(), literal(kind, laid, laid_slopes), atol=1e-4, rtol=1e-2
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_images_give_alone(kind: str) -> None:
    model = loaded(network())
    images = pictures()
    together = sl.cam(model, images, kind=kind).values
    assert together["label"].tolist() == model.logits(images).argmax(1).tolist()
    assert together["map"].shape == (3, 16, 20)
    for i in range(3):
        alone = sl.cam(model, images[i : i + 1], kind=kind).values
        assert torch.allclose(together["cam"][i : i + 1], alone["cam"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_shows_the_map(kind: str) -> None:
    result = sl.cam(loaded(network()), pictures()[:1], kind=kind, label=2)
    map_ = result.values["map"]
    negative = bool((result.values["cam"] < 0).any())
    shown = result.panels["cam"][:, :, :, 26:46]
    assert torch.equal(shown, render_signed_map(map_) if negative else render_heatmap(map_))
    assert ("full colour ±" in result.captions["cam"]) == negative
    assert negative <= (kind in SIGNED)
    assert "of no class" in result.captions["cam"] or "cat" in result.captions["cam"]


@pytest.mark.parametrize(
    ("make", "layer"), [(Flat, "relu"), (Net, "conv3"), (Net, "conv1"), (Tokens, "norm1")]
)
def test_cam_is_refused_where_it_is_not_exact(make: type[nn.Module], layer: str) -> None:
    with pytest.raises(
        sl.SightlineError, match=r"mean over the layer's positions and one linear layer.*gradcam"
    ) as caught:
        sl.cam(loaded(network(make)), pictures(16, 16), kind="cam", layer=layer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["head", "logits", "penultimate"])
def test_a_layer_without_positions_is_refused_in_one_line(kind: str, layer: str) -> None:
    with pytest.raises(sl.SightlineError, match="no positions") as caught:
        sl.cam(loaded(network()), pictures(), kind=kind, layer=layer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SIGNED])
def test_a_dead_layer_gives_an_empty_map(kind: str) -> None:
    net = network()
    with torch.no_grad():
        net.conv3.bias.fill_(-1e4)
    result = sl.cam(loaded(net), pictures(), kind=kind, label=0)
    assert not result.values["cam"].any()
    assert "empty" in result.captions["cam"]
    assert result.panels["cam"].isfinite().all()
