"""The first look at a network, by way of a model: in which mode, at which size, on whose image."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.layers.listing import LayerListing

IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(5))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def score(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)


class Clipping(Small):
    """Writes to a weight in each pass, so that the private copy gets weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        self.fc.bias.data.clamp_(-0.01, 0.01)
        return self.score(x)


class Flattening(Small):
    """Takes images in torch's default layout only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x) + x.view(len(x), -1)[:, :5]


def differentiate(model: sl.Model, label: int) -> Tensor:
    return sl.saliency(model, IMAGES, label=label, kind="gradient").values["gradient"]


def assert_gradient(model: sl.Model, label: int, expected: Tensor) -> None:
    torch.testing.assert_close(differentiate(model, label), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [Small, Clipping, Flattening])
@pytest.mark.parametrize("question", ["findings", "layers", "labels", "landmarks"])
def test_a_first_question_in_inference_mode_leaves_the_gradients(
    make: type[Small], question: str
) -> None:
    network = make().to(memory_format=torch.channels_last).eval()
    model = sl.load(network, size=(24, 32))
    with torch.inference_mode():
        getattr(model, question)
    assert not any(weight.is_inference() for weight in model.network.parameters())
    fresh = sl.load(make().eval(), size=(24, 32))
    assert_gradient(model, 1, differentiate(fresh, 1))


def test_scores_that_are_others_under_autograd_are_read_as_under_autograd() -> None:
    class Switching(Small):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.score(x)
            return scores if torch.is_grad_enabled() else scores.softmax(1)

    network = Switching().eval()
    model = sl.load(network, size=(24, 32), mean=[0.0] * 3, std=[1.0] * 3)
    assert model.output_kind == "logits"
    assert model.findings.notes == ()
    images = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(images)[:, 3].sum(), images)
    assert_gradient(model, 3, expected)


def test_randomness_without_autograd_is_no_dependence_on_the_batch() -> None:
    class Noisy(Small):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.score(x)
            return scores if torch.is_grad_enabled() else scores + torch.rand_like(scores)

    assert not sl.load(Noisy().eval(), size=(24, 32)).findings.runs_one_by_one


@pytest.mark.parametrize("asks_layers_first", [True, False])
def test_layers_are_those_of_the_networks_own_size(asks_layers_first: bool) -> None:
    class Sized(Small):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 48:
                return F.relu(self.conv(x)).flatten(1).unsqueeze(1).unsqueeze(1).unsqueeze(1)
            return self.fc(self.extra(F.relu(self.conv(x))).mean((2, 3)))

    model = sl.load(Sized().eval(), size=32)
    if asks_layers_first:
        assert list(model.layers) == ["conv", "/relu"]
    assert model.logits(torch.rand(1, 3, 48, 48)).shape == (1, 5)
    assert list(model.layers) == ["conv", "/relu"]
    assert model.layers["conv"].shape == (6, 30, 30)


def test_a_preparation_that_changes_nothing_keeps_the_image_of_the_user() -> None:
    class Writing(Small):
        def forward(self, x: Tensor) -> Tensor:
            x.data.mul_(0.5)
            return self.score(x)

    model = sl.load(Writing().eval(), size=(24, 32), preprocess=lambda x: x)
    image = IMAGES.clone()
    assert model.findings.notes == ()
    scores = [model.logits(image) for _ in range(2)]
    sl.saliency(model, image, label=1, kind="gradient")
    sl.occlusion(model, image, label=1, window=8, stride=8)
    assert torch.equal(image, IMAGES)
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("kind", ["ablated", "deepcopy", "target"])
def test_a_model_that_is_made_of_another_in_inference_mode_has_its_gradients(kind: str) -> None:
    def derive(model: sl.Model) -> sl.Model:
        if kind == "ablated":
            return model.ablated({"conv": [1, 4]}, fill="mean", images=IMAGES)
        return copy.deepcopy(model) if kind == "deepcopy" else model.with_target(like)

    like = sl.similar_to(IMAGES[:1])
    label = 0 if kind == "target" else 1
    with torch.inference_mode():
        model = derive(sl.load(Small().eval(), size=(24, 32), output_kind="embedding"))
    fresh = derive(sl.load(Small().eval(), size=(24, 32), output_kind="embedding"))
    assert_gradient(model, label, differentiate(fresh, label))


class Settling(nn.Module):
    """Repeats a convolution until little changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.enter = nn.Conv2d(3, 6, 3, 2, 1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        entered = self.enter(image)
        state = entered
        for _ in range(9):
            change = 0.4 * torch.tanh(self.again(state) + entered) - 0.4 * state
            state = state + change
            if change.abs().max() < 0.05:
                break
        return self.head(state.mean((2, 3)))


def test_landmarks_are_layers_that_every_image_passes() -> None:
    """A network that loops as long as an image needs has a default layer for plain ones too."""
    model = sl.load(Settling(), size=(20, 24))
    noise = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(3))
    for image in (noise, 0.5 + 0.01 * noise, 0.2 * noise, torch.zeros_like(noise) + 0.7):
        sl.cam(model, image, label=1)
        names = [model.layer("middle"), model.layer("last_conv")]
        assert all(output.isfinite().all() for output in model.run(image, names).values())


def test_only_repeated_weights_cost_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    run = LayerListing.run_forward_pass

    def count(listing: LayerListing, forward: Any) -> Any:
        passes.append(1)
        return run(listing, forward)

    monkeypatch.setattr(LayerListing, "run_forward_pass", count)
    relu = nn.ReLU()
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 6, 3), relu, nn.Flatten(), nn.LazyLinear(4)
    )
    plain(torch.rand(1, 3, 20, 24))
    assert len(sl.load(plain, size=(20, 24)).layers) == 6
    assert len(passes) == 1
    assert sl.load(Settling(), size=(20, 24)).layers
    assert len(passes) == 1 + 5
