"""The gradient against finite differences in float64, against captum, and in closed form.

Averages of many gradients against captum, literal loops and what they must add up to.
"""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn

import sightline as sl
from sightline.images.io.library import read_random_images
from sightline.images.plotting.maps import render_signed_map
from sightline.images.transforms import blur_image
from sightline.methods.attribution.gradients import sample_quarter_crops

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LABELS = ("ant", "bee", "cat", "dog")
HEIGHT = 12
WIDTH = 15


class Net(nn.Module):
    def __init__(self, smooth: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)
        self.smooth = smooth

    def forward(self, x: Tensor) -> Tensor:
        rectify = torch.tanh if self.smooth else torch.relu
        return self.head(rectify(self.conv2(rectify(self.conv1(x)))).mean((2, 3)))


class PadAndFlatten(nn.Module):
    """Flattens images, padded to HEIGHT×WIDTH: a Model also runs its network on a square blank."""

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, WIDTH - x.shape[3], 0, HEIGHT - x.shape[2])
        return nn.functional.pad(x, padding).flatten(1)


def network(smooth: bool = False) -> Net:
    torch.manual_seed(0)
    net = Net(smooth).eval()
    with torch.no_grad():
        net.head.weight.mul_(6)
    return net


def loaded(net: nn.Module) -> sl.Model:
    return sl.load(net, mean=MEAN, std=STD, labels=LABELS, size=12, device="cpu")


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def in_double(net: nn.Module, image: Tensor) -> Tensor:
    """The network on a [0, 1] image in float64, normalized here."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return copy.deepcopy(net).double()((image.double() - mean) / std)


def test_the_gradient_is_that_of_finite_differences() -> None:
    net = network(smooth=True)
    image, step = pictures(1), 1e-5
    with torch.no_grad():
        top = int(in_double(net, image).argmax())
        values = sl.saliency(loaded(net), image).values
        assert values["label"].tolist() == [top]
        basis = torch.eye(3 * HEIGHT * WIDTH, dtype=torch.float64).view(-1, 3, HEIGHT, WIDTH) * step
        up, down = in_double(net, image.double() + basis), in_double(net, image.double() - basis)
        expected = ((up - down) / (2 * step))[:, top].view(1, 3, HEIGHT, WIDTH)
    assert torch.allclose(values["gradient"].double(), expected, atol=1e-6, rtol=1e-4)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            channels = values["gradient"][0, :, row, column].tolist()
            assert values["saliency"][0, row, column].item() == max(abs(v) for v in channels)


@pytest.mark.parametrize("label", [0, 3, "top"])
def test_captum_agrees(label: int | str) -> None:
    model = loaded(network())
    target = model.logits(pictures()).argmax(1) if label == "top" else label
    referee = Saliency(model.logits)
    expected = referee.attribute(pictures().requires_grad_(), target=target, abs=False)
    found = sl.saliency(model, pictures(), label=label).values
    assert torch.allclose(found["gradient"], expected, atol=1e-6)
    assert torch.allclose(
        found["saliency"],
        referee.attribute(pictures().requires_grad_(), target=target).amax(1),
        atol=1e-6,
    )


def test_on_a_linear_network_it_is_the_weights() -> None:
    torch.manual_seed(2)
    linear = nn.Sequential(PadAndFlatten(), nn.Linear(3 * HEIGHT * WIDTH, 4))
    weight = linear[1].weight.detach().view(4, 3, HEIGHT, WIDTH) / torch.tensor(STD).view(3, 1, 1)
    for label, name in enumerate(LABELS):
        found = sl.saliency(loaded(linear), pictures(), label=name).values
        assert found["label"].tolist() == [label] * 3
        assert torch.allclose(found["gradient"], weight[label].expand(3, -1, -1, -1), atol=1e-6)
        assert torch.allclose(
            found["saliency"], weight[label].abs().amax(0).expand(3, -1, -1), atol=1e-6
        )


def test_each_image_asks_about_its_own_top_label() -> None:
    model = loaded(network())
    images = torch.cat(
        [pictures(6), torch.zeros(1, 3, HEIGHT, WIDTH), torch.ones(1, 3, HEIGHT, WIDTH)]
    )
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
    certain, plain = (
        sl.saliency(loaded(net), pictures(), label=1).values["gradient"]
        for net in (sure, network())
    )
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


# ── what is averaged from many gradients ──

NOISY = ("smoothgrad", "vargrad", "smoothgrad_squared")
COMPLETE = ("integrated", "blur_ig", "expected")


def literal_gradient(net: nn.Module, image: Tensor, label: int) -> Tensor:
    """The gradient of one score at one image 3×H×W in float64, literally."""
    leaf = image.double()[None].requires_grad_()
    return torch.autograd.grad(in_double(net, leaf)[0, label], leaf)[0][0]


def literal_score(net: nn.Module, image: Tensor, label: int) -> float:
    return in_double(net, image[None])[0, label].item()


def linear_network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(PadAndFlatten(), nn.Linear(3 * HEIGHT * WIDTH, 4))


def test_the_default_kind_is_the_gradient() -> None:
    model = loaded(network())
    plain, named = sl.saliency(model, pictures()), sl.saliency(model, pictures(), kind="gradient")
    assert torch.equal(plain.panels["saliency"], named.panels["saliency"])
    assert torch.equal(plain.values["gradient"], plain.values["per_channel"])
    assert "|gradient| of the score of" in plain.captions["saliency"]


def test_captum_agrees_on_input_times_gradient() -> None:
    model = loaded(network())
    for label in range(4):
        expected = InputXGradient(model.logits).attribute(pictures().requires_grad_(), target=label)
        found = sl.saliency(model, pictures(), label=label, kind="gradient_input").values
        assert torch.allclose(found["per_channel"], expected.detach(), atol=1e-6)
        assert torch.allclose(found["saliency"], expected.detach().abs().amax(1), atol=1e-6)


def copies(image: Tensor, sigma: float, count: int, seed: int) -> list[Tensor]:
    """The noisy copies of a 3×H×W image, drawn one after another."""
    generator = torch.Generator().manual_seed(seed)
    deviation = sigma * float(image.max() - image.min())
    return [
        image + deviation * torch.randn(3, HEIGHT, WIDTH, generator=generator) for _ in range(count)
    ]


@pytest.mark.parametrize("kind", NOISY)
def test_noisy_kinds_are_the_moments_of_the_gradient(kind: str) -> None:
    net = network()
    found = sl.saliency(
        loaded(net), pictures(), label=2, kind=kind, samples=7, sigma=0.3, seed=4
    ).values["per_channel"]
    for i, image in enumerate(pictures()):
        gradients = torch.stack(
            [literal_gradient(net, noisy, 2) for noisy in copies(image, 0.3, 7, 4)]
        )
        expected = {
            "smoothgrad": gradients.mean(0),
            "vargrad": gradients.var(0, correction=0),
            "smoothgrad_squared": gradients.square().mean(0),
        }
        assert torch.allclose(found[i].double(), expected[kind], atol=1e-6, rtol=1e-4)
    assert found.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "peer"),
    [("smoothgrad", "smoothgrad"), ("smoothgrad_squared", "smoothgrad_sq"), ("vargrad", "vargrad")],
)
def test_captum_agrees_on_noisy_kinds(kind: str, peer: str) -> None:
    """Captum draws its own noise, so the two agree as two samples of one mean do."""
    model = loaded(network())
    image, count = pictures(1), 1000
    deviation = 0.2 * float(image.max() - image.min())
    torch.manual_seed(0)
    expected = NoiseTunnel(
        Saliency(lambda noisy: model.run(noisy, ["logits"])["logits"])
    ).attribute(
        image.clone().requires_grad_(),
        nt_type=peer,
        nt_samples=count,
        nt_samples_batch_size=250,
        stdevs=deviation,
        target=1,
        abs=False,
    )
    found = sl.saliency(model, image, label=1, kind=kind, samples=count, sigma=0.2).values[
        "per_channel"
    ]
    assert (found - expected).norm() / expected.norm() < 0.12


@pytest.mark.parametrize("baseline", ["black", "white", "gray", "blur", "random"])
@pytest.mark.parametrize("samples", [1, 6])
def test_captum_agrees_on_integrated_gradients(baseline: str, samples: int) -> None:
    model = loaded(network())
    image = pictures()
    if baseline == "random":
        start = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9)).expand(
            3, -1, -1, -1
        )
    elif baseline == "blur":
        start = torch.cat([blur_image(one[None], 2.0) for one in image])
    else:
        start = torch.full_like(image, {"black": 0.0, "white": 1.0, "gray": 0.5}[baseline])
    referee = IntegratedGradients(model.logits)
    expected = referee.attribute(
        image.clone().requires_grad_(), start, target=1, n_steps=samples, method="gausslegendre"
    )
    values = sl.saliency(
        model, image, label=1, kind="integrated", baseline=baseline, samples=samples, seed=9
    ).values
    assert torch.allclose(values["per_channel"], expected.float(), atol=1e-5)
    difference = (model.logits(image) - model.logits(start))[:, 1].detach()
    assert torch.allclose(values["difference"], difference, atol=1e-5)
    assert torch.allclose(values["gap"], expected.float().sum((1, 2, 3)) - difference, atol=1e-4)


@pytest.mark.parametrize("kind", ["integrated", "blur_ig"])
def test_more_nodes_close_the_gap(kind: str) -> None:
    """Completeness (Sundararajan 2017, axiom 3): it adds up to the change of the score."""
    model = loaded(network(smooth=True))
    few, many = (
        sl.saliency(model, pictures(), label=1, kind=kind, samples=n).values for n in (2, 64)
    )
    assert many["difference"].abs().min() > 1e-3
    assert (many["gap"].abs() < 2e-3 * many["difference"].abs()).all()
    assert many["gap"].abs().max() < 0.1 * few["gap"].abs().max()
    assert torch.allclose(many["per_channel"].sum((1, 2, 3)), many["difference"], atol=1e-4)


@pytest.mark.parametrize("kind", COMPLETE)
def test_one_node_is_exact_on_a_linear_network(kind: str) -> None:
    net = linear_network()
    weight = net[1].weight.detach().view(4, 3, HEIGHT, WIDTH) / torch.tensor(STD).view(3, 1, 1)
    values = sl.saliency(
        loaded(net), pictures(), label=3, kind=kind, samples=1, baseline="white"
    ).values
    assert values["gap"].abs().max() < 1e-4
    if kind == "integrated":
        assert torch.allclose(values["per_channel"], weight[3] * (pictures() - 1), atol=1e-5)
    if kind == "blur_ig":
        start = torch.cat([blur_image(one[None], 2.0) for one in pictures()])
        assert torch.allclose(values["per_channel"], weight[3] * (pictures() - start), atol=1e-5)


def test_blur_ig_is_its_loop() -> None:
    net = network()
    image = pictures(1)
    corners = [
        *(blur_image(image, 2.0 * (1 - k / 5) ** 2)[0] for k in range(5)),
        image[0],
    ]
    expected = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    for before, after in pairwise(corners):
        expected += literal_gradient(net, (before + after) / 2, 0) * (after - before)
    found = sl.saliency(loaded(net), image, label=0, kind="blur_ig", samples=5).values
    assert torch.allclose(found["per_channel"][0].double(), expected, atol=1e-6)
    assert found["difference"].item() == pytest.approx(
        literal_score(net, image[0], 0) - literal_score(net, corners[0], 0), abs=1e-5
    )


def test_expected_gradients_are_their_loop(tmp_path: Path) -> None:
    net = network()
    image, stored = (
        pictures(1),
        torch.rand(4, 3, 14, 15, generator=torch.Generator().manual_seed(6)).mul(255).round() / 255,
    )
    for number, picture in enumerate(stored):
        sl.write(picture, tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    values = sl.saliency(
        loaded(net), image, label=0, kind="expected", samples=4, folder=str(tmp_path), seed=5
    ).values
    generator = torch.Generator().manual_seed(5)
    stretches, within = torch.randperm(4, generator=generator), torch.rand(4, generator=generator)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(5))
    expected, scores = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64), []
    for k in range(4):
        start = stored[order[k], :, 1:13]
        place = float(stretches[k] + within[k]) / 4
        expected += (
            literal_gradient(net, start + place * (image[0] - start), 0) * (image[0] - start) / 4
        )
        scores.append(literal_score(net, start, 0))
    assert torch.allclose(values["per_channel"][0].double(), expected, atol=1e-6)
    assert values["difference"].item() == pytest.approx(
        literal_score(net, image[0], 0) - sum(scores) / 4, abs=1e-5
    )


def test_expected_gradients_add_up_in_the_mean() -> None:
    few, many = (
        sl.saliency(loaded(network()), pictures(), label=1, kind="expected", samples=n).values
        for n in (1, 500)
    )
    assert many["gap"].abs().max() < 0.1 * many["difference"].abs().max()
    assert many["gap"].abs().mean() < few["gap"].abs().mean()


@pytest.mark.parametrize("kind", [*NOISY, *COMPLETE])
def test_the_split_into_batches_changes_nothing(kind: str) -> None:
    whole, single, thirds = (
        sl.saliency(
            loaded(network()), pictures(), kind=kind, samples=7, baseline="random", batch=batch
        ).values
        for batch in (None, 1, 3)
    )
    for other in (single, thirds):
        assert whole.keys() == other.keys()
        for name in whole:
            assert torch.allclose(whole[name], other[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [*NOISY, *COMPLETE])
def test_a_batch_gives_what_its_images_give_alone(kind: str) -> None:
    model = loaded(network())
    together = sl.saliency(model, pictures(), kind=kind, samples=3).values
    for i in range(3):
        alone = sl.saliency(model, pictures()[i : i + 1], kind=kind, samples=3).values
        for name in together:
            assert torch.allclose(together[name][i : i + 1], alone[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gradient_input", *NOISY, *COMPLETE])
def test_each_kind_has_its_picture(kind: str) -> None:
    result = sl.saliency(loaded(network()), pictures(1), label=0, kind=kind, samples=2)
    map_ = result.panels["saliency"][0, :, :, 21:36]
    total = result.values["per_channel"][0].sum(0)
    if kind in ("vargrad", "smoothgrad_squared"):
        assert result.values["per_channel"].min() >= 0
        assert "black is 0" in result.captions["saliency"]
    else:
        sizes = sorted(total.abs().flatten().tolist())
        limit = sizes[round(0.99 * len(sizes)) - 1]
        assert torch.equal(map_, render_signed_map(total[None], limit)[0])
        assert f"±{limit:.3g}" in result.captions["saliency"]
    assert ("gap of" in result.captions["saliency"]) == (kind in COMPLETE)


def test_baselines_say_where_they_come_from(tmp_path: Path) -> None:
    model = loaded(network())
    assert (
        "random quarters of the image itself"
        in sl.saliency(model, pictures(1), kind="expected", samples=2).captions["saliency"]
    )
    quarters = list(sample_quarter_crops(pictures(1)[0], 50, 0))
    assert {one.shape for one in quarters} == {(3, HEIGHT, WIDTH)}
    assert all(0 <= one.min() <= one.max() <= 1 for one in quarters)
    assert len({one.sum().item() for one in quarters}) > 20
    assert next(sample_quarter_crops(torch.rand(3, 1, 1), 1, 0)).shape == (3, 1, 1)
    for number in range(2):
        sl.write(torch.full((1, 3, 4, 9), number / 4), tmp_path / f"{number}.png")
    drawn = read_random_images(str(tmp_path), 5, 0, 6, 6)
    assert [one.shape for one in drawn] == [(3, 6, 6)] * 5
    assert len({one.mean().item() for one in drawn[:2]}) == 2


@pytest.mark.parametrize(
    ("folder", "why"), [("missing", "no such folder"), (".", "holds no pictures")]
)
def test_a_folder_without_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sl.SightlineError, match=why) as caught:
        sl.saliency(loaded(network()), pictures(1), kind="expected", folder=folder)
    assert "\n" not in str(caught.value)


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(sl.SightlineError, match="did you mean integrated"):
        sl.saliency(loaded(network()), pictures(1), kind="integrate")
