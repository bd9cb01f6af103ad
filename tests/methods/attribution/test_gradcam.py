"""Grad-CAM against captum, against CAM where they are equal, and on a transformer's tokens."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

import sightline as sl

LABELS = ("ant", "bee", "cat")


class Net(nn.Module):
    """Ends in global average pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 5, 3, padding=1),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.Conv2d(6, 7, 3, padding=1),
        )
        self.relu, self.hidden, self.head = nn.ReLU(), nn.Identity(), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(self.hidden(self.relu(self.conv3(x)).mean((2, 3))))


class Tokens(nn.Module):
    """A small transformer: class token, patch tokens, one attention, a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.norm1 = nn.LayerNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm1(torch.cat([self.cls.expand(len(x), -1, -1), patches], 1))
        weights = (self.q(tokens) @ self.k(tokens).transpose(1, 2)).softmax(2)
        return self.head((tokens + weights @ self.v(tokens))[:, 0])


def loaded(make: type[nn.Module]) -> sl.Model:
    torch.manual_seed(3)
    return sl.load(make(), mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=16, device="cpu")


def pictures(height: int = 16, width: int = 20) -> Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "relu"])
def test_captum_agrees(layer: str) -> None:
    model = loaded(Net)
    image = pictures()
    for label in range(3):
        found = sl.gradcam(model, image, label=label, layer=layer).values
        expected = LayerGradCam(model.logits, model.module(layer)).attribute(
            image.requires_grad_(), target=label, relu_attributions=True
        )
        assert torch.allclose(found["cam"], expected[:, 0].detach(), atol=1e-6)
        assert found["map"].shape == (3, 16, 20)
        assert found["cam"].min() >= 0


def test_the_map_is_the_cam_enlarged() -> None:
    found = sl.gradcam(loaded(Net), pictures(), label=0, layer="conv1").values
    assert torch.equal(found["map"], found["cam"]), (
        "at the image's own resolution nothing is enlarged"
    )
    found = sl.gradcam(loaded(Net), pictures(18, 30), label=1).values
    assert found["map"].shape == (3, 18, 30)
    assert found["map"].amax() <= found["cam"].amax() + 1e-6


def test_before_a_global_mean_and_a_linear_layer_it_is_cam() -> None:
    model = loaded(Net)
    weight = model.module("head").weight.detach()
    features = model.features(pictures(), "relu")["relu"]
    for label in range(3):
        cam = np.zeros((3, 7, 9))
        for k in range(7):
            cam += float(weight[label, k]) * features[:, k].double().numpy()
        found = sl.gradcam(model, pictures(), label=label, layer="relu").values["cam"]
        assert found.shape == (3, 7, 9)
        assert np.allclose(found.numpy() * 63, np.maximum(cam, 0), atol=1e-5)


class Pair(nn.Module):
    """Gives two tensors, the first of which is its map."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, 1


class Paired(Net):
    """The same network by way of a module that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.pair(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(self.relu(self.conv3(x)).mean((2, 3)))


def test_a_layer_that_gives_more_than_one_tensor() -> None:
    model, image = sl.load(Paired(), size=16), torch.rand(2, 3, 16, 20)
    found = sl.gradcam(model, image, label=1, layer="pair")
    maps = model.features(image.clone().requires_grad_(), ["pair", "logits"])
    (gradients,) = torch.autograd.grad(maps["logits"][:, 1].sum(), maps["pair"])
    expected = (gradients.mean((2, 3), keepdim=True) * maps["pair"]).sum(1).relu()
    torch.testing.assert_close(found.tensors["cam"], expected.detach())


def test_one_forward_pass_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted class is read off the pass that is made anyway."""
    model, image = sl.load(Net(), size=16), torch.rand(2, 3, 16, 20)
    sl.gradcam(model, image)
    calls: list[Tensor] = []
    monkeypatch.setattr(
        sl.Model,
        "run_network",
        lambda self, x, run=sl.Model.run_network: (calls.append(x), run(self, x))[1],
    )
    for method in (sl.gradcam, sl.saliency):
        calls.clear()
        method(model, image)
        assert len(calls) == 1


def test_each_image_asks_about_its_own_top_label() -> None:
    model = loaded(Net)
    images = torch.cat([pictures(), torch.zeros(1, 3, 16, 20), torch.ones(1, 3, 16, 20)])
    together = sl.gradcam(model, images).values
    assert together["label"].tolist() == model.logits(images).argmax(1).tolist()
    for i in range(len(images)):
        alone = sl.gradcam(model, images[i : i + 1], label=int(together["label"][i])).values["cam"]
        assert torch.allclose(together["cam"][i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize("layer", ["norm1", "last_conv"])
def test_tokens_are_laid_on_their_grid(layer: str) -> None:
    model = loaded(Tokens)
    found = sl.gradcam(model, pictures(), label=1, layer=layer).values
    image = pictures().requires_grad_()
    features = model.features(image, ["norm1", "logits"])
    (gradient,) = torch.autograd.grad(features["logits"][:, 1].sum(), features["norm1"])
    tokens, gradients = features["norm1"][:, 1:].detach().numpy(), gradient[:, 1:].numpy()
    assert tokens.shape == (3, 20, 8)
    for i in range(3):
        weight = gradients[i].mean(0)
        expected = np.array(
            [[max(0.0, float(weight @ tokens[i, 5 * r + c])) for c in range(5)] for r in range(4)]
        )
        assert np.allclose(found["cam"][i].numpy(), expected, atol=1e-6)
    assert found["cam"].max() > 0
    assert found["map"].shape == (3, 16, 20)


@pytest.mark.parametrize("layer", ["hidden", "head", "logits", "penultimate"])
def test_a_layer_without_positions_is_refused_in_one_line(layer: str) -> None:
    with pytest.raises(sl.SightlineError, match="no positions") as caught:
        sl.gradcam(loaded(Net), pictures(), layer=layer)
    assert "\n" not in str(caught.value)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(sl.SightlineError, match="no layer named 'conv4'; did you mean conv"):
        sl.gradcam(loaded(Net), pictures(), layer="conv4")


def test_an_empty_map_says_so() -> None:
    model = loaded(Net)
    result = sl.gradcam(nobody(), pictures()[:1])
    assert not result.values["cam"].any()
    assert "empty" in result.captions["gradcam"]
    assert torch.isfinite(result.panels["gradcam"]).all()
    assert "empty" not in sl.gradcam(model, pictures()[:1], layer="conv1").captions["gradcam"]


def nobody() -> sl.Model:
    """No channel of the last layer speaks for any class."""
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        net.head.weight.fill_(-1.0)
    return sl.load(net, labels=LABELS, size=16, device="cpu")


class Aside(torch.nn.Module):
    """Has a branch that its output doesn't use; if `cut`, the output has no gradient."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut, self.main, self.aside, self.head = (
            cut,
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.Linear(4, 3),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.aside(image)
        features = self.main(image).mean((2, 3))
        return self.head(features.detach() if self.cut else features)


@pytest.mark.parametrize(
    ("cut", "layer", "message"),
    [(False, "aside", "does not depend on aside"), (True, "main", "no gradient")],
)
def test_a_layer_that_the_output_does_not_use_is_refused(
    cut: bool, layer: str, message: str
) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        sl.gradcam(sl.load(Aside(cut), size=16), torch.rand(1, 3, 16, 16), layer=layer)
