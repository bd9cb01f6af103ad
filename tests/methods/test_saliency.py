"""The gradient against finite differences in float64, against captum, and in closed form."""

import copy

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor, nn

import sightline as sl

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LABELS = ("ant", "bee", "cat", "dog")


class Net(nn.Module):
    def __init__(self, smooth: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)
        self.smooth = smooth

    def forward(self, x: Tensor) -> Tensor:
        rectify = torch.tanh if self.smooth else torch.relu
        return self.head(rectify(self.conv2(rectify(self.conv1(x)))).mean((2, 3)))


def network(smooth: bool = False) -> Net:
    torch.manual_seed(0)
    net = Net(smooth).eval()
    with torch.no_grad():
        net.head.weight.mul_(6)
    return net


def loaded(net: nn.Module) -> sl.Model:
    return sl.load(net, mean=MEAN, std=STD, labels=LABELS, size=12, device="cpu")


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def in_double(net: nn.Module, image: Tensor) -> Tensor:
    """The network on a [0, 1] image in float64, normalized here."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return copy.deepcopy(net).double()((image.double() - mean) / std)


def test_it_is_the_slope_by_finite_differences() -> None:
    net = network(smooth=True)
    image, step = pictures(1), 1e-5
    with torch.no_grad():
        top = int(in_double(net, image).argmax())
        found = sl.saliency(loaded(net), image).values
        assert found["label"].tolist() == [top]
        basis = torch.eye(3 * 12 * 12, dtype=torch.float64).view(-1, 3, 12, 12) * step
        up, down = in_double(net, image.double() + basis), in_double(net, image.double() - basis)
        expected = ((up - down) / (2 * step))[:, top].view(1, 3, 12, 12)
    assert torch.allclose(found["gradient"].double(), expected, atol=1e-6, rtol=1e-4)
    for r in range(12):
        for c in range(12):
            assert found["saliency"][0, r, c].item() == max(abs(v) for v in found["gradient"][0, :, r, c].tolist())


@pytest.mark.parametrize("label", [0, 3, "top"])
def test_captum_agrees(label: int | str) -> None:
    model = loaded(network())
    target = model.logits(pictures()).argmax(1) if label == "top" else label
    referee = Saliency(model.logits)
    expected = referee.attribute(pictures().requires_grad_(), target=target, abs=False)
    found = sl.saliency(model, pictures(), label=label).values
    assert torch.allclose(found["gradient"], expected, atol=1e-6)
    assert torch.allclose(found["saliency"], referee.attribute(pictures().requires_grad_(), target=target).amax(1), atol=1e-6)


def test_on_a_linear_network_it_is_the_weights() -> None:
    torch.manual_seed(2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))
    weight = linear[1].weight.detach().view(4, 3, 12, 12) / torch.tensor(STD).view(3, 1, 1)
    for label, name in enumerate(LABELS):
        found = sl.saliency(loaded(linear), pictures(), label=name).values
        assert found["label"].tolist() == [label] * 3
        assert torch.allclose(found["gradient"], weight[label].expand(3, -1, -1, -1), atol=1e-6)
        assert torch.allclose(found["saliency"], weight[label].abs().amax(0).expand(3, -1, -1), atol=1e-6)


def test_each_image_asks_about_its_own_top_label() -> None:
    model = loaded(network())
    images = torch.cat([pictures(6), torch.zeros(1, 3, 12, 12), torch.ones(1, 3, 12, 12)])
    together = sl.saliency(model, images).values
    assert together["label"].tolist() == model.logits(images).argmax(1).tolist()
    for i in range(8):
        alone = sl.saliency(model, images[i : i + 1]).values
        assert torch.allclose(together["gradient"][i : i + 1], alone["gradient"], atol=1e-6)


def test_the_score_is_before_the_softmax() -> None:
    """A constant added to every score leaves it; so does a score that has won already."""
    sure = network()
    with torch.no_grad():
        sure.head.bias[1] += 100
    certain, plain = (sl.saliency(loaded(net), pictures(), label=1).values["gradient"] for net in (sure, network()))
    assert torch.allclose(certain, plain, atol=1e-6)
    assert plain.abs().max() > 1e-3


def test_it_works_where_gradients_are_off_and_on_a_flat_network() -> None:
    with torch.no_grad():
        values = sl.saliency(loaded(network()), pictures(), label=0).values
    assert not values["gradient"].requires_grad
    assert values["gradient"].abs().max() > 0
    dead = network()
    with torch.no_grad():
        dead.conv1.bias.fill_(-1e4)
    result = sl.saliency(loaded(dead), pictures(1), label=0)
    assert result.values["saliency"].abs().max() == 0
    assert torch.isfinite(result.panels["saliency"]).all()


@pytest.mark.parametrize("label", [4, -1, "zebra"])
def test_other_labels_are_refused(label: int | str) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        sl.saliency(loaded(network()), pictures(1), label=label)
    assert str(label) in str(caught.value)
    assert "\n" not in str(caught.value)
