"""Neurons backpropagated to the pixels: which they are, captum's gradients, the pixels they see."""

import itertools
import math
import warnings

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.tracing.crops import crop_padded_window


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
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


@pytest.mark.parametrize(
    ("rule", "referee"),
    [("guided", GuidedBackprop), ("deconvnet", Deconvolution), ("gradient", Saliency)],
)
@pytest.mark.parametrize("unit", [None, 0, 5])
def test_captum_agrees_for_that_neuron(
    model: sl.Model, rule: str, referee: type, unit: int | None
) -> None:
    values = sl.guided(model, pictures(), layer="conv3", unit=unit, rule=rule).values
    target = list(
        zip(values["unit"].tolist(), values["row"].tolist(), values["column"].tolist(), strict=True)
    )
    extra = {"abs": False} if referee is Saliency else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = referee(referee_network(model)).attribute(
            pictures().requires_grad_(), target=target, **extra
        )
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


def test_a_vector_layer_has_one_position(model: sl.Model) -> None:
    values = sl.guided(model, pictures(), layer="head", rule="gradient").values
    logits = model.logits(pictures())
    assert values["unit"].tolist() == logits.argmax(1).tolist()
    assert values["row"].tolist() == values["column"].tolist() == [0, 0, 0]
    assert torch.allclose(
        values["gradient"], sl.saliency(model, pictures()).values["gradient"], atol=1e-6
    )


@pytest.mark.parametrize(("layer", "units"), [("conv3", 9), ("head", 4), ("relu1", 6)])
def test_a_unit_out_of_range_is_refused(model: sl.Model, layer: str, units: int) -> None:
    with pytest.raises(
        sl.SightlineError, match=f"unit is {units}; {layer} has units 0 to {units - 1}"
    ):
        sl.guided(model, pictures(), layer=layer, unit=units)
    sl.guided(model, pictures(1), layer=layer, unit=units - 1)
    with pytest.raises(sl.SightlineError, match="unit is -1"):
        sl.guided(model, pictures(), layer=layer, unit=-1)


def seen_by(layer: str, unit: int, row: int, column: int) -> tuple[int, int, int, int]:
    """The pixels that can change a neuron's activation.

    Positive weights and average pooling leave none of them out by chance.
    """
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
        place = (
            int(result.values["unit"]),
            int(result.values["row"]),
            int(result.values["column"]),
        )
        top, left, bottom, right = seen_by(layer, *place)
        assert f"{bottom - top}×{right - left} pixels" in result.captions["guided"]
        panel = result.panels["guided"]
        assert panel.shape[2] >= 24
        scale = panel.shape[2] // 24
        drawn = (
            nn.functional.interpolate(panel[..., : 28 * scale], size=(24, 28))
            if scale > 1
            else panel[:, :, :24, :28]
        )
        changed = ((drawn - image).abs().amax(1)[0] > 0.3).nonzero()
        assert (changed.amin(0).tolist(), (changed.amax(0) + 1).tolist()) == (
            [top, left],
            [bottom, right],
        )
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
    maps = {
        rule: sl.guided(model, image, layer="b", rule=rule).values
        for rule in ("gradient", "deconvnet", "guided")
    }
    assert {rule: values["relus"] for rule, values in maps.items()} == {
        "gradient": 1,
        "deconvnet": 1,
        "guided": 1,
    }
    assert not torch.allclose(maps["gradient"]["gradient"], maps["guided"]["gradient"], atol=1e-4)
    assert not torch.allclose(maps["deconvnet"]["gradient"], maps["guided"]["gradient"], atol=1e-4)
    with torch.no_grad():
        inner = model.module("b")(model.module("a")(model.normalize(image)).relu())
    assert maps["guided"]["activation"].item() == pytest.approx(float(inner.max()), abs=1e-5), (
        "before the in-place ReLU"
    )


def test_without_relu_the_rules_are_the_same_and_the_caption_says_so() -> None:
    torch.manual_seed(1)
    model = sl.load(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 2)
        ),
        size=12,
        device="cpu",
    )
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    results = [
        sl.guided(model, image, layer="2", rule=rule)
        for rule in ("gradient", "deconvnet", "guided")
    ]
    assert all(
        torch.equal(result.values["gradient"], results[0].values["gradient"]) for result in results
    )
    assert all(
        result.values["relus"] == 0 and "No ReLU" in result.captions["guided"] for result in results
    )


def test_no_trace_is_left(model: sl.Model) -> None:
    before = sl.saliency(model, pictures()).values["gradient"]
    sl.guided(model, pictures(), layer="conv3")
    with pytest.raises(sl.SightlineError):
        sl.guided(model, pictures(), layer="conv3", unit=99)
    assert torch.equal(sl.saliency(model, pictures()).values["gradient"], before)


# ── the strongest neurons of a layer at once ──


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "head"])
@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_k_neurons_are_k_single_runs(model: sl.Model, layer: str, rule: str) -> None:
    several = sl.guided(model, pictures(2), layer=layer, rule=rule, k=3).values
    assert several["gradient"].shape == (2, 3, 3, 24, 28)
    for i in range(2):
        for j, unit in enumerate(several["unit"][i].tolist()):
            one = sl.guided(model, pictures(2)[i : i + 1], layer=layer, rule=rule, unit=unit).values
            torch.testing.assert_close(
                several["gradient"][i, j], one["gradient"][0], rtol=1e-4, atol=1e-6
            )
            assert several["relus"] == one["relus"]
            for key in ("row", "column", "activation"):
                torch.testing.assert_close(several[key][i, j], one[key][0], rtol=1e-5, atol=1e-6)


def test_they_are_the_strongest_of_as_many_units(model: sl.Model) -> None:
    values = sl.guided(model, pictures(2), layer="conv3", k=4).values
    with torch.no_grad():
        peaks = model.features(pictures(2), "conv3")["conv3"].flatten(2).amax(2)
    assert [len(set(units)) for units in values["unit"].tolist()] == [4, 4]
    torch.testing.assert_close(
        values["activation"], peaks.sort(1, descending=True).values[:, :4], rtol=1e-5, atol=1e-6
    )
    first = sl.guided(model, pictures(2), layer="conv3").values
    assert torch.equal(first["unit"], values["unit"][:, 0])
    assert first["gradient"].shape == (2, 3, 24, 28)
    assert (
        sl.guided(model, pictures(2), layer="conv3", k=64).values["unit"].sort(1).values.tolist()
        == [list(range(9))] * 2
    )


def test_copies_that_do_not_fit_are_sent_in_turns(
    model: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = sl.guided(model, pictures(2), layer="conv3", k=5)
    monkeypatch.setattr(
        "sightline.methods.attribution.guided.choose_batch_size", lambda *_, **__: 3
    )
    in_turns = sl.guided(model, pictures(2), layer="conv3", k=5)
    torch.testing.assert_close(dict(in_turns.values), dict(at_once.values), rtol=1e-5, atol=1e-7)


def test_parts_have_one_size_and_lie_where_the_image_has_them() -> None:
    image = pictures(1)
    for box in (
        (2, 3, 9, 12),
        (-4, -2, 3, 7),
        (20, 22, 27, 31),
        (-3, -5, 27, 35),
        (-9, 0, -2, 9),
        (30, 30, 37, 39),
    ):
        part = crop_padded_window(image, box)
        assert part.shape[-2:] == (box[2] - box[0], box[3] - box[1])
        for y, x in itertools.product(range(part.shape[2]), range(part.shape[3])):
            row, column = box[0] + y, box[1] + x
            expected = (
                image[0, :, row, column]
                if 0 <= row < 24 and 0 <= column < 28
                else torch.full((3,), 0.5)
            )
            assert torch.equal(part[0, :, y, x], expected)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "head"])
def test_patches_beside_their_maps_on_one_scale(model: sl.Model, layer: str) -> None:
    result = sl.guided(model, pictures(2), layer=layer, k=4)
    size = (24, 28) if layer == "head" else sl.receptive_field(model, layer, 24, 28).size
    assert f"the {size[0]}×{size[1]} pixels that each sees" in result.captions["guided"]
    factor = -(-64 // min(size))
    height, width = size[0] * factor, size[1] * factor
    columns = math.ceil(math.sqrt(4 * height / width))
    rows = math.ceil(4 / columns)
    sheet = (rows * (height + 2) - 2, columns * (width + 2) - 2)
    panel = result.panels["guided"]
    assert panel.shape[-2:] == (2 * sheet[0] + 12, 2 * sheet[1] + 12)
    magnitude = result.values["gradient"].abs()
    limit = float(
        magnitude[magnitude > 0].sort().values[round(0.995 * int((magnitude > 0).sum())) - 1]
    )
    assert f"±{limit:.3g}," in result.captions["guided"]
    for i, places in enumerate(
        zip(result.values["row"].tolist(), result.values["column"].tolist(), strict=True)
    ):
        for j, (row, column) in enumerate(zip(*places, strict=True)):
            box = (
                (0, 0, 24, 28)
                if layer == "head"
                else sl.receptive_field(model, layer, 24, 28).window(row, column)
            )
            top, left = i * (sheet[0] + 12) + j // columns * (height + 2), j % columns * (width + 2)
            for shown, at in (
                (pictures(2)[i : i + 1], left),
                (
                    (0.5 + 0.5 * result.values["gradient"][i, j][None] / limit).clamp(0, 1),
                    left + sheet[1] + 12,
                ),
            ):
                part = panel[:, :, top : top + height : factor, at : at + width : factor]
                torch.testing.assert_close(part, crop_padded_window(shown, box), rtol=0, atol=1e-6)


def test_several_neurons_leave_no_choice_of_unit(model: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="k is 3 and unit is 2"):
        sl.guided(model, pictures(), layer="conv3", unit=2, k=3)


def test_dead_neurons_have_empty_maps(model: sl.Model) -> None:
    net = Net()
    with torch.no_grad():
        net.conv1.bias.fill_(-1e3)
    result = sl.guided(sl.load(net, size=24, device="cpu"), pictures(1), layer="relu1", k=2)
    assert result.values["gradient"].abs().max() == 0
    assert result.panels["guided"].isfinite().all()


@pytest.mark.parametrize(("k", "clause"), [(1, "It is zero everywhere"), (2, "1 of them are zero")])
def test_a_neuron_at_its_cap_is_told(k: int, clause: str) -> None:
    convolution = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        convolution.weight.fill_(0.1)
        convolution.bias.copy_(torch.tensor([50.0, 0.5]))
    layers = [convolution, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)]
    model = sl.Model(nn.Sequential(*layers).eval(), size=24)
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    caption = sl.guided(model, image, layer="1", k=k).captions["guided"]
    assert clause in caption
    assert "6 for ReLU6" in caption
    other = sl.guided(model, image, layer="1", unit=1).captions["guided"]
    assert "zero everywhere" not in other


@pytest.mark.parametrize("k", [1, 3])
def test_other_channels_are_shown_by_three_bands(k: int) -> None:
    """The panel is that of a network of three channels to which the other two are nothing."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    narrow = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        wide[0].weight[:, 3:] = 0  # type: ignore[index]
        narrow[0].weight.copy_(wide[0].weight[:, :3])  # type: ignore[index, union-attr, operator]
        narrow[0].bias.copy_(wide[0].bias)  # type: ignore[union-attr, operator, arg-type]
        narrow[2].load_state_dict(wide[2].state_dict())
    image = torch.rand(2, 5, 14, 18, generator=torch.Generator().manual_seed(1))
    panels: list[Tensor] = []
    for network, channels in ((wide, 5), (narrow, 3)):
        statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
        model = sl.load(network, size=14, **statistics)
        result = sl.guided(model, image[:, :channels], layer="2", k=k)
        assert result.values["gradient"].shape[-3] == channels
        panels.append(result.panels["guided"])
    torch.testing.assert_close(panels[0], panels[1], atol=0.02, rtol=0)
