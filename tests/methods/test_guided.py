"""One neuron sent back to the pixels: which one it is, what captum gives for it, and the pixels it sees."""

import warnings

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3), nn.ReLU()
        self.conv3, self.head = nn.Conv2d(8, 9, 3), nn.Linear(9, 4)

    def upto(self, x: Tensor) -> Tensor:
        return self.conv3(self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.upto(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=24, device="cpu")


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 24, 28, generator=torch.Generator().manual_seed(1))


def referee_network(model: sl.Model) -> nn.Module:
    """The same weights, with the normalization in front and the neurons of conv3 as outputs."""

    class Upto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net.upto((x - 0.5) / 0.25)

    return Upto().eval()


@pytest.mark.parametrize(("rule", "referee"), [("guided", GuidedBackprop), ("deconvnet", Deconvolution), ("gradient", Saliency)])
@pytest.mark.parametrize("unit", [None, 0, 5])
def test_captum_agrees_for_that_neuron(model: sl.Model, rule: str, referee: type, unit: int | None) -> None:
    values = sl.guided(model, pictures(), layer="conv3", unit=unit, rule=rule).values
    target = list(zip(values["unit"].tolist(), values["row"].tolist(), values["column"].tolist(), strict=True))
    extra = {"abs": False} if referee is Saliency else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = referee(referee_network(model)).attribute(pictures().requires_grad_(), target=target, **extra)
    assert expected.abs().max() > 1e-4
    assert torch.allclose(values["gradient"], expected.detach(), atol=1e-6)
    assert values["relus"] == 2


@pytest.mark.parametrize("layer", ["conv1", "relu2", "conv3"])
@pytest.mark.parametrize("rule", ["gradient", "guided"])
def test_the_strongest_neuron_is_the_strongest(model: sl.Model, layer: str, rule: str) -> None:
    with torch.no_grad():
        features = model.features(pictures(), layer)[layer]
    whole = sl.guided(model, pictures(), layer=layer, rule=rule).values
    for i in range(3):
        place = (int(whole["unit"][i]), int(whole["row"][i]), int(whole["column"][i]))
        assert features[i][place] == features[i].max()
        assert whole["activation"][i].item() == pytest.approx(float(features[i].max()))
    for unit in (0, 4):
        one = sl.guided(model, pictures(), layer=layer, unit=unit, rule=rule).values
        assert one["unit"].tolist() == [unit] * 3
        for i in range(3):
            assert features[i, unit, one["row"][i], one["column"][i]] == features[i, unit].max()


def test_a_vector_layer_has_one_place(model: sl.Model) -> None:
    values = sl.guided(model, pictures(), layer="head", rule="gradient").values
    logits = model.logits(pictures())
    assert values["unit"].tolist() == logits.argmax(1).tolist()
    assert values["row"].tolist() == values["column"].tolist() == [0, 0, 0]
    assert torch.allclose(values["gradient"], sl.saliency(model, pictures()).values["gradient"], atol=1e-6)


@pytest.mark.parametrize(("layer", "units"), [("conv3", 9), ("head", 4), ("relu1", 6)])
def test_a_unit_out_of_range_is_refused(model: sl.Model, layer: str, units: int) -> None:
    with pytest.raises(sl.SightlineError, match=f"unit is {units}; {layer} has units 0 to {units - 1}"):
        sl.guided(model, pictures(), layer=layer, unit=units)
    sl.guided(model, pictures(1), layer=layer, unit=units - 1)
    with pytest.raises(sl.SightlineError, match="unit is -1"):
        sl.guided(model, pictures(), layer=layer, unit=-1)


def seen_by(layer: str, unit: int, row: int, column: int) -> tuple[int, int, int, int]:
    """The pixels that can move a neuron: in a network with positive weights and means for maxima none is hidden by chance."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_().add_(0.1)
    x = torch.full((1, 3, 24, 28), 0.5).requires_grad_()
    caught: list[Tensor] = []
    net.pool = nn.AvgPool2d(2)
    net.get_submodule(layer).register_forward_hook(lambda _m, _i, out: caught.append(out))
    net(x)
    (gradient,) = torch.autograd.grad(caught[0][0, unit, row, column], x)
    rows, columns = (gradient[0].abs().sum((0, axis)).nonzero().flatten() for axis in (2, 1))
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


@pytest.mark.parametrize("layer", ["conv1", "pool", "conv2", "conv3"])
def test_the_outlined_part_is_what_the_neuron_sees(model: sl.Model, layer: str) -> None:
    for seed in range(3):
        image = 0.1 + 0.3 * torch.rand(1, 3, 24, 28, generator=torch.Generator().manual_seed(seed))
        result = sl.guided(model, image, layer=layer)
        place = (int(result.values["unit"]), int(result.values["row"]), int(result.values["column"]))
        top, left, bottom, right = seen_by(layer, *place)
        assert f"{bottom - top}×{right - left} pixels" in result.captions["guided"]
        panel = result.panels["guided"]
        assert panel.shape[2] >= 24
        scale = panel.shape[2] // 24
        drawn = nn.functional.interpolate(panel[..., : 28 * scale], size=(24, 28)) if scale > 1 else panel[:, :, :24, :28]
        changed = ((drawn - image).abs().amax(1)[0] > 0.3).nonzero()
        assert (changed.amin(0).tolist(), (changed.amax(0) + 1).tolist()) == ([top, left], [bottom, right])
        gradient = result.values["gradient"][0].abs().sum(0)
        outside = gradient.clone()
        outside[top:bottom, left:right] = 0
        assert outside.max() == 0, "no pixel outside has any influence"


class Functional(nn.Module):
    """No ReLU is a module, the last one works in place: what peers' hooks miss."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(torch.relu(self.a(x))), inplace=True).mean((2, 3)))


def test_functional_relus_are_met() -> None:
    torch.manual_seed(1)
    model = sl.load(Functional(), size=16, device="cpu")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = {rule: sl.guided(model, image, layer="b", rule=rule).values for rule in ("gradient", "deconvnet", "guided")}
    assert {rule: values["relus"] for rule, values in maps.items()} == {"gradient": 1, "deconvnet": 1, "guided": 1}
    assert not torch.allclose(maps["gradient"]["gradient"], maps["guided"]["gradient"], atol=1e-4)
    assert not torch.allclose(maps["deconvnet"]["gradient"], maps["guided"]["gradient"], atol=1e-4)
    with torch.no_grad():
        inner = model.module("b")(model.module("a")(model.normalize(image)).relu())
    assert maps["guided"]["activation"].item() == pytest.approx(float(inner.max()), abs=1e-5), "before the in-place ReLU"


def test_without_relu_the_rules_are_the_same_and_the_caption_says_so() -> None:
    torch.manual_seed(1)
    model = sl.load(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 2)), size=12, device="cpu"
    )
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    results = [sl.guided(model, image, layer="2", rule=rule) for rule in ("gradient", "deconvnet", "guided")]
    assert all(torch.equal(result.values["gradient"], results[0].values["gradient"]) for result in results)
    assert all(result.values["relus"] == 0 and "no ReLU" in result.captions["guided"] for result in results)


def test_no_trace_is_left(model: sl.Model) -> None:
    before = sl.saliency(model, pictures()).values["gradient"]
    sl.guided(model, pictures(), layer="conv3")
    with pytest.raises(sl.SightlineError):
        sl.guided(model, pictures(), layer="conv3", unit=99)
    assert torch.equal(sl.saliency(model, pictures()).values["gradient"], before)
