"""Synthesis, inversion and dreams of gray networks, other channels, fixed sizes and precisions."""

from collections.abc import Callable

import pytest
import torch
from helpers import make_input
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.images.transforms import resize_image

SIZE = (34, 50)


class Blocks(nn.Module):
    """A network that takes any size, with a dense output beside its vector."""

    def __init__(self, channels: int = 3, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 9, 3, padding=1)
        self.head = nn.Linear(9, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.norm(self.stem(x)))
        return self.head(F.elu(self.deep(x)).mean((2, 3)))


class FixedSize(nn.Module):
    """Takes images of one size only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * SIZE[0] * SIZE[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def load(network: nn.Module, channels: int = 3, **options: object) -> sl.Model:
    options.setdefault("size", SIZE)
    mean = (0.0,) * channels
    std = (1.0,) * channels
    return sl.load(network.eval(), mean=mean, std=std, **options)  # type: ignore[arg-type]


def make_images(count: int = 1, channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return make_input(count, channels, *size).mul(0.7).sigmoid()


def is_gray(image: Tensor) -> bool:
    return torch.equal(image, image[:, :1].expand_as(image)) and image.shape[1] == 3


# ── targets ──

TARGETS: dict[str, Callable[[Blocks, Tensor], Tensor]] = {
    "unit('deep', 5)": lambda net, x: net.deep(F.elu(net.norm(net.stem(x)))).mean((2, 3))[:, 5],
    "unit('stem', 2, position=(3, 7))": lambda net, x: net.stem(x)[:, 2, 3, 7],
    "classes(1, 3)": lambda net, x: net(x)[:, 1] + net(x)[:, 3],
    "regression(2)": lambda net, x: net(x)[:, 2],
}


@pytest.mark.parametrize("text", TARGETS)
def test_a_target_is_ascended(text: str) -> None:
    network = Blocks()
    model = load(network, output_kind="embedding" if "regression" in text else None)
    result = sl.synthesis(model, text, steps=12, lr=0.3)
    measure = TARGETS[text]
    image = result.values["image"]
    assert image.shape == (1, 3, *SIZE)
    with torch.no_grad():
        score = float(measure(network, image))
    assert result.values["score"] == pytest.approx(score, abs=1e-4)
    assert score > float(result.values["scores"][0])
    assert result.captions["synthesis"].startswith(text)

    again = sl.again(result.recipe, model=model)
    torch.testing.assert_close(again.values["image"], image, atol=1e-5, rtol=0)


def test_the_ascent_of_a_target_is_plain_gradient_ascent() -> None:
    """Two steps of a mean length, by hand."""
    network = Blocks()
    options: dict[str, object] = {"preset": "lecture", "decay": 0.0, "blur": 0.0, "clip": 0.0}
    images: list[Tensor] = []
    sl.synthesis(
        load(network),
        sl.unit("deep", 5),
        steps=3,
        lr=0.01,
        callback=lambda step: images.append(step.image),
        **options,  # type: ignore[arg-type]
    )
    # The preset warps the image, so the step is only compared in its length.
    change = (images[2] - images[1]).abs().mean()
    assert float(change) == pytest.approx(0.01, rel=0.05)


def test_a_function_is_ascended_and_told_by_its_name() -> None:
    def lead_of_last(output: Tensor) -> Tensor:
        return output[:, 3] - output[:, 0]

    network = Blocks()
    result = sl.synthesis(load(network, output_kind="embedding"), lead_of_last, steps=4)
    with torch.no_grad():
        expected = float(lead_of_last(network(result.values["image"])))
    assert result.values["score"] == pytest.approx(expected, abs=1e-4)
    assert "lead_of_last" in result.recipe["objective"]
    assert " at 0x" not in result.recipe["objective"]
    with pytest.raises(sl.SightlineError, match="a text can't hold"):
        sl.again(result.recipe, model=load(network, output_kind="embedding"))


@pytest.mark.parametrize("kind", ["regression", "embedding"])
def test_classes_of_a_network_without_classes_are_refused(kind: str) -> None:
    model = load(Blocks(), output_kind=kind)
    for subject in (sl.logit(1), ""):
        with pytest.raises(sl.SightlineError, match="needs classes"):
            sl.synthesis(model, subject, steps=1)
    assert sl.synthesis(model, sl.channel("deep", 2), steps=1).values["image"].shape[2:] == SIZE


# ── gray networks and other channels ──


@pytest.mark.parametrize("preset", ["smooth", "lecture", "yosinski", "maco", "accentuation"])
@pytest.mark.parametrize("focus", ["auto", "alpha"])
def test_a_synthesis_for_luminance_is_gray(preset: str, focus: str) -> None:
    if focus == "alpha" and preset in ("lecture", "yosinski"):
        pytest.skip("transparency goes with a spectrum")
    network = Blocks(channels=1)
    photo = make_images() if preset == "accentuation" else None
    model = load(network, 1)
    values = sl.synthesis(model, "2", preset=preset, focus=focus, photo=photo, steps=6).values  # type: ignore[arg-type]
    assert is_gray(values["image"])
    # Blurring the noise of Yosinski's start lowers the first scores.
    assert values["scores"][-1] > values["scores"][0] or preset == "yosinski"
    with torch.no_grad():
        expected = float(network(values["image"][:, :1])[0, 2])
    assert values["score"] == pytest.approx(expected, abs=1e-4)


def test_a_generators_picture_for_luminance_is_gray() -> None:
    model = load(Blocks(channels=1), 1, size=32)
    assert is_gray(sl.synthesis(model, "2", preset="generator", steps=2).values["image"])


@pytest.mark.parametrize("kind", ["pixels", "fourier"])
def test_an_inversion_for_luminance_is_gray(kind: str) -> None:
    model = load(Blocks(channels=1), 1)
    values = sl.inversion(model, make_images(2), layer="stem", kind=kind, steps=30).values  # type: ignore[arg-type]
    assert is_gray(values["image"])
    assert values["scores"][-1].mean() > values["scores"][0].mean()


def test_a_dream_for_luminance_is_gray_and_steps_along_the_levels() -> None:
    network = Blocks(channels=1)
    image = make_images()
    options = {"layer": "deep", "steps": 1, "octaves": 1, "jitter": 0, "step_size": 0.01}
    values = sl.deepdream(load(network, 1), image, **options).values  # type: ignore[arg-type]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    levels = (image * weights).sum(1, keepdim=True).requires_grad_()
    energy = network.deep(F.elu(network.norm(network.stem(levels)))).square().mean() / 2
    (gradient,) = torch.autograd.grad(energy, levels)
    expected = (levels + 0.01 * gradient / gradient.abs().mean()).clamp(0, 1).detach()
    assert is_gray(values["image"])
    torch.testing.assert_close(values["image"][:, :1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_images_of_other_channels_are_made(channels: int) -> None:
    network = Blocks(channels)
    model = load(network, channels)
    for options in ({}, {"start": "gray"}, {"focus": "alpha"}):
        result = sl.synthesis(model, "1", steps=8, **options)  # type: ignore[arg-type]
        values = result.values
        assert values["image"].shape == (1, channels, *SIZE)
        assert values["scores"][-1] > values["scores"][0]
        assert result.panels["synthesis"].shape[1] == 3
        assert "natural" not in values
        assert "photographs" not in result.captions["synthesis"]
    image = make_images(2, channels)
    for kind in ("pixels", "fourier"):
        result = sl.inversion(model, image, layer="stem", kind=kind, steps=8)
        assert result.values["image"].shape == image.shape
        assert result.panels["inversion"].shape[1] == 3
    large = make_images(1, channels, (64, 90))
    result = sl.deepdream(model, large, layer="deep", steps=2, guide=image[:1])
    assert result.values["image"].shape == large.shape
    assert result.panels["deepdream"].shape[1] == 3


def test_what_only_pictures_have_is_refused_in_one_line() -> None:
    model = load(Blocks(5), 5)
    for options, message in (
        ({"preset": "maco"}, "no amplitudes of 5 channels"),
        ({"preset": "generator"}, "paints square pictures"),
        ({"photo": "rocket"}, "takes 5: give a tensor"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            sl.synthesis(model, "1", steps=1, **options)
    with pytest.raises(sl.SightlineError, match="takes 5: give a tensor"):
        sl.deepdream(model, make_images(1, 5, (64, 90)), layer="deep", guide="rocket")


# ── sizes ──


def test_a_network_of_one_size_is_seen_at_that_size() -> None:
    model = load(FixedSize())
    assert sl.synthesis(model, "1", steps=2).values["image"].shape == (1, 3, *SIZE)
    assert sl.synthesis(model, "1", steps=2, size=34).values["image"].shape == (1, 3, *SIZE)
    with pytest.raises(sl.SightlineError, match="made for 34×50"):
        sl.synthesis(model, "1", steps=1, size=40)
    image = make_images(2)
    assert sl.inversion(model, image, layer="head", steps=3).values["image"].shape == image.shape
    assert sl.adversarial(model, image, steps=3).values["image"].shape == image.shape
    values = sl.deepdream(model, image, layer="head", unit=1, steps=2).values
    assert len(values["scores"]) == 2, "one size"


def test_a_larger_image_is_dreamed_on_by_tiles_of_the_networks_size() -> None:
    model = load(FixedSize())
    image = make_images(1, 3, (70, 110))
    result = sl.deepdream(model, image, layer="head", unit=1, steps=3, jitter=0, step_size=0.01)
    assert result.values["image"].shape == image.shape
    assert result.values["scores"][-1] > result.values["scores"][-3]
    small = resize_image(image, 34, 40)
    with pytest.raises(sl.SightlineError, match="made for 34×50"):
        sl.deepdream(model, small, layer="head", unit=1, steps=1)


def test_sizes_of_a_dream_are_multiples_where_the_network_asks_for_them() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 6, 12, stride=12)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] % 8 == x.shape[3] % 8 == 0, "sides must be divisible by 8"
            return self.head(self.patch(x).mean((2, 3)))

    model = load(Patches(), size=(48, 64))
    sizes: list[tuple[int, ...]] = []
    sl.deepdream(
        model,
        make_images(1, 3, (96, 128)),
        layer="head",
        unit=1,
        steps=1,
        callback=lambda step: sizes.append(tuple(step.image.shape[2:])),
    )
    assert sizes[-1] == (96, 128)
    assert len(sizes) == 4
    assert all(height % 8 == width % 8 == 0 for height, width in sizes)


# ── precision ──


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_networks_of_any_precision(dtype: torch.dtype) -> None:
    exact = load(Blocks())
    rough = load(Blocks().to(dtype))
    image = make_images()
    errors = [
        sl.inversion(model, image, layer="deep", steps=40).values["error"].float()
        for model in (exact, rough)
    ]
    torch.testing.assert_close(errors[1], errors[0], atol=0.02, rtol=0.05)
    values = sl.synthesis(rough, "1", steps=6).values
    assert values["image"].dtype == torch.float32
    assert values["scores"][-1] > values["scores"][0]
    dream = sl.deepdream(rough, image, layer="deep", steps=2).values["image"]
    assert dream.isfinite().all()
    assert not torch.equal(dream, image)


def test_a_default_of_double_precision_changes_nothing() -> None:
    image = make_images()
    runs: dict[str, Callable[[sl.Model], sl.Result]] = {
        "spectrum": lambda model: sl.synthesis(model, "1", steps=3),
        "pixels": lambda model: sl.synthesis(model, "1", steps=8, preset="lecture"),
        "photo": lambda model: sl.synthesis(model, "1", steps=3, photo=image),
        "inversion": lambda model: sl.inversion(model, image, layer="stem", steps=4),
        "dream": lambda model: sl.deepdream(model, image, layer="stem", steps=1),
        "attack": lambda model: sl.adversarial(model, image, norm="l2", steps=4),
    }
    network = Blocks()
    for run in runs.values():
        expected = run(load(network)).values["image"]
        torch.set_default_dtype(torch.float64)
        try:
            found = run(load(network)).values["image"]
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


# ── no gradient ──


@pytest.mark.parametrize("kind", ["no_grad", "round"])
def test_a_network_that_is_cut_off_is_refused(kind: str) -> None:
    class Cut(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            if kind == "round":
                x = (x * 50).round() / 50
            with torch.set_grad_enabled(kind == "round"):
                x = self.stem(x)
            return self.head(F.elu(self.deep(F.elu(self.norm(x)))).mean((2, 3)))

    model = load(Cut())
    image = make_images()
    for run in (
        lambda: sl.synthesis(model, "1", steps=1),
        lambda: sl.synthesis(model, sl.logit(1) - sl.tv(), steps=1),
        lambda: sl.synthesis(model, "unit('deep', 2)", steps=1),
        lambda: sl.inversion(model, image, layer="deep", steps=1),
        lambda: sl.deepdream(model, image, layer="deep", steps=1),
        lambda: sl.adversarial(model, image, steps=1),
        lambda: sl.adversarial(model, image, attack="cw", steps=1),
    ):
        with pytest.raises(sl.SightlineError, match="cut off from differentiation"):
            run()


def test_a_silent_unit_is_dreamed_on_with_a_note() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.no_grad():
        network[0].bias.fill_(-9.0)
    image = make_images()
    result = sl.deepdream(load(network), image, layer="1", unit=2, steps=2)
    assert "No gradient reached the image" in result.captions["deepdream"]
    torch.testing.assert_close(result.values["image"], image, atol=1e-6, rtol=0)


class Compared(Blocks):
    """Gives what an image has more of than another one, which is run last."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x) - super().forward(other)


def test_of_a_pair_the_given_image_is_dreamed_on_and_inverted() -> None:
    other = make_images(3)[2:]
    model = load(Compared(), inputs={"other": other})
    assert "deep:1" in model.layers
    dream = sl.deepdream(model, make_images(), octaves=1, steps=3).values["image"]
    assert not torch.equal(dream, make_images())
    inverted = sl.inversion(model, make_images(), k=3, steps=4)
    assert len(inverted.values["layers"]) >= 2
    assert not any(name.endswith(":1") for name in inverted.values["layers"])
    # Asked by name, such a layer is refused: no pixel of this image changes it.
    with pytest.raises(sl.SightlineError, match="deep:1"):
        sl.inversion(model, make_images(), layer="deep:1", steps=2)
