"""Inversion: exact where a layer can be inverted, the published descent step by step, worse with
depth, and only what the patch sees.
"""

from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.methods.synthesis.inversion import make_inversion_preconditioner


def mixing(kernel: int = 2, side: int = 8) -> sl.Model:
    """A linear layer that loses nothing: blocks of pixels, each turned by an orthogonal matrix. A
    linear head gives it classes.
    """
    size = 3 * kernel**2
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
    layer = nn.Conv2d(3, size, kernel, stride=kernel)
    with torch.no_grad():
        layer.weight.copy_(turn.view(size, 3, kernel, kernel))
    network = nn.Sequential(
        OrderedDict(mix=layer, flat=nn.Flatten(), head=nn.Linear(size * (side // kernel) ** 2, 4))
    )
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=side)


@pytest.fixture(scope="module")
def tiny() -> sl.Model:
    return sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=32)


def test_a_layer_that_loses_nothing_is_inverted_exactly() -> None:
    image = smooth(2, 8) * 0.8 + 0.1
    values = sl.inversion(
        mixing(), image, layer="mix", kind="pixels", steps=200, lr=0.02, smooth=0, limit=0
    ).values
    assert (values["image"] - image).abs().max() < 1e-3
    assert values["error"].max() < 1e-6
    assert values["psnr"].min() > 70
    assert values["ssim"].min() > 0.9999


def test_lbfgs_finds_it_without_a_learning_rate() -> None:
    """Black and white too, which the paper's bound on pixels would turn into gray."""
    image = torch.cat([smooth(2, 8), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    values = sl.inversion(mixing(), image, layer="mix", steps=150, smooth=0).values
    assert (values["image"] - image).abs().max() < 3e-3
    assert values["error"].max() < 1e-5
    assert values["scores"].shape == (150, 4)
    torch.testing.assert_close(-values["scores"][-1], values["error"][0], rtol=0.5, atol=1e-6)


def test_the_preconditioner_is_symmetric_and_prefers_coarse_and_bright() -> None:
    image = torch.zeros(1, 3, 10, 14)
    precondition = make_inversion_preconditioner(image)
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(image.shape, generator=rng)
    second = torch.randn(image.shape, generator=rng)
    torch.testing.assert_close(
        (first * precondition(second)).sum(), (second * precondition(first)).sum()
    )
    assert (first * precondition(first)).sum() > 0

    def measure_gain(direction: Tensor) -> float:
        return float((direction * precondition(direction)).sum() / direction.square().sum())

    gray = torch.ones(1, 3, 10, 14)
    checkered = gray * (-1.0) ** (torch.arange(10)[:, None] + torch.arange(14))
    colored = gray * torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    assert measure_gain(gray) > 5 * measure_gain(colored)
    assert measure_gain(gray) > 15 * measure_gain(checkered)


def test_a_spectrum_finds_it_too() -> None:
    image = smooth(2, 8) * 0.8 + 0.1
    values = sl.inversion(
        mixing(), image, layer="mix", kind="fourier", steps=200, smooth=0, limit=0
    ).values
    assert values["psnr"].min() > 25


@pytest.mark.parametrize("layer", ["conv1", "relu2", "fc"])
def test_it_is_the_published_descent(tiny: sl.Model, layer: str) -> None:
    """invert_nn.m, literally: gray levels, one momentum, three learning rates, momentum anew at
    each; the picture is kept in range.
    """
    image = smooth(seed=4)
    wanted = tiny.features(image, layer)[layer].detach()
    power = 72.0**2 * 3 * 32 * 32
    x = (torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(7)) * 72).clamp(
        -127.5, 127.5
    )[None]
    speed, scores = torch.zeros_like(x), []
    for lr, steps in ((0.01, 2), (0.001, 4), (0.0001, 2)):
        speed.zero_()
        for _ in range(steps):
            x.requires_grad_()
            data = (
                tiny.run(x / 255 + 0.5, [layer])[layer] - wanted
            ).square().sum() / wanted.square().sum()
            dx, dy = torch.zeros_like(x), torch.zeros_like(x)
            dx[..., :-1] = x[..., 1:] - x[..., :-1]
            dy[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
            loss = (
                data
                + (8e-10 / 2 * x.pow(6).sum() + 3.0 / 2 * (dx.square() + dy.square()).sum()) / power
            )
            (gradient,) = torch.autograd.grad(loss * power, x)
            scores.append(-loss.item())
            speed = 0.9 * speed - lr * gradient
            x = (x.detach() + speed).clamp(-127.5, 127.5)
    values = sl.inversion(
        tiny, image, layer=layer, kind="pixels", steps=8, lr=0.01, smooth=3.0, seed=7
    ).values
    torch.testing.assert_close(values["image"], x / 255 + 0.5, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values["scores"][:, 0], torch.tensor(scores), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("conv1", {"pixels": 1.0, "lbfgs": 0.1}),
        ("relu2", {"fourier": 10.0, "lbfgs": 0.3}),
        ("gap", {"pixels": 100.0, "lbfgs": 1.0}),
        ("fc", {"pixels": 100.0, "lbfgs": 1.0}),
    ],
)
def test_the_smoothness_is_that_of_the_depth(
    tiny: sl.Model, layer: str, weights: dict[str, float]
) -> None:
    for kind, weight in weights.items():
        invert = partial(sl.inversion, tiny, smooth(), layer=layer, kind=kind, steps=3)
        by_default = invert().values["image"]
        assert torch.equal(by_default, invert(smooth=weight).values["image"])
        assert not torch.equal(by_default, invert(smooth=2 * weight).values["image"])


def test_the_numbers_are_those_of_the_pictures(tiny: sl.Model) -> None:
    image = smooth(2, seed=2)
    values = sl.inversion(tiny, image, k=3, steps=3).values
    names = values["layers"]
    assert names == ["conv1", "relu2", "fc"]
    pictures = values["image"].unflatten(0, (3, 2))
    for at, name in enumerate(names):
        wanted, found = (tiny.features(x, name)[name].flatten(1) for x in (image, pictures[at]))
        torch.testing.assert_close(
            values["error"][at],
            (found - wanted).square().sum(1) / wanted.square().sum(1),
            rtol=1e-4,
            atol=1e-6,
        )
        square = (pictures[at] - image).square().mean((1, 2, 3))
        torch.testing.assert_close(
            values["psnr"][at], 10 * torch.log10(1 / square), rtol=1e-4, atol=1e-4
        )
    assert values["scores"].shape == (9, 2)
    assert values["ssim"].shape == (3, 2)


def test_depth_takes_every_layer_if_asked(tiny: sl.Model) -> None:
    assert sl.inversion(tiny, smooth(), k=1000, steps=1).values["layers"] == [
        name for name in tiny.layers if name != "flatten"
    ]


def test_a_batch_is_its_images(tiny: sl.Model) -> None:
    together = sl.inversion(tiny, smooth(3), layer="relu2", steps=5).values["image"]
    alone = [
        sl.inversion(tiny, image[None], layer="relu2", steps=5).values["image"]
        for image in smooth(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_patch_of_neurons_moves_what_it_sees_alone(tiny: sl.Model) -> None:
    image = smooth(seed=3)
    start = (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 72).clamp(
        -127.5, 127.5
    ) / 255 + 0.5
    values = sl.inversion(
        tiny, image, layer="conv2", kind="pixels", patch=4, steps=6, lr=0.05, smooth=0, limit=0
    ).values
    moved = (values["image"] - start).abs().amax((0, 1)) > 1e-6
    field = sl.receptive_fields(tiny)["conv2"]
    rows = [place for place in range(32) if moved[place].any()]
    # Positions 6 to 9 of 16 rows, two pixels apart.
    assert (rows[0], rows[-1] + 1) == (
        max(0, field.box(6, 6, 32, 32)[0]),
        field.box(9, 9, 32, 32)[2],
    )
    wanted, found = (
        tiny.features(x, "conv2")["conv2"][:, :, 6:10, 6:10] for x in (image, values["image"])
    )
    torch.testing.assert_close(
        values["error"][0, 0],
        (found - wanted).square().sum() / wanted.square().sum(),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_patch_larger_than_the_layer_is_the_layer(tiny: sl.Model) -> None:
    whole, patch = (
        sl.inversion(tiny, smooth(), layer="conv3", steps=2, patch=patch).values["image"]
        for patch in (None, 500)
    )
    assert torch.equal(whole, patch)


@pytest.mark.parametrize("name", ["sightnet", "squeezenet", "mobilenet"])
def test_real_networks_forget_with_depth(name: str, request: pytest.FixtureRequest) -> None:
    if name == "sightnet":
        model, layers = sl.load(), ("relu1", "relu3_2", "relu5_2")
    elif name == "squeezenet":
        weights = request.getfixturevalue("data") / "nets" / "squeezenet1_0.safetensors"
        model, layers = (
            sl.load("squeezenet1_0", weights=str(weights)),
            ("features.0", "features.12"),
        )
    else:
        weights = request.getfixturevalue("data") / "nets" / "mobilenetv2_100_same.safetensors"
        model = sl.load("mobilenetv2_100", weights=str(weights), pad_type="same")
        layers = ("conv_stem", "conv_head")
    photo = model.fit(sl.sample("chelsea"), 48)
    found = [
        sl.inversion(model, photo, layer=layer, kind="fourier", steps=12).values for layer in layers
    ]
    psnr, ssim = ([float(values[key]) for values in found] for key in ("psnr", "ssim"))
    assert psnr[0] > 2 + max(psnr[1:])
    assert ssim[0] > 2 * max(ssim[1:])


def test_a_shallow_layer_of_vgg_keeps_the_photographs_colors(data: Path) -> None:
    """Three photographs, two of them with much black, which all come back green from plain
    gradient descent.
    """
    weights = data / "nets" / "vgg16_features.safetensors"
    model = sl.load("vgg16", weights=weights, device="cpu")
    photos = torch.cat(
        [model.fit(sl.sample(name), 64) for name in ("chelsea", "coffee", "astronaut")]
    )
    values = sl.inversion(model, photos, layer="relu2_2", steps=60).values
    assert values["psnr"].min() > 23
    mean_color_error = (values["image"] - photos).mean((2, 3)).abs()
    assert mean_color_error.max() < 0.03


def test_stops_between_layers_with_what_is_done(tiny: sl.Model) -> None:
    values = sl.inversion(
        tiny, smooth(), k=3, steps=2, callback=lambda step: step.index == 3
    ).values
    assert values["layers"] == ["conv1", "relu2"]
    assert values["image"].shape == (2, 3, 32, 32)


def test_the_generator_paints_in_one_forward_pass() -> None:
    model = sl.load("sightnet_plain")
    photo = model.fit(sl.sample("chelsea"), 96)
    found = sl.inversion(model, photo, kind="learned").values
    assert found["layers"] == ["relu4_2", model.layer("penultimate")]
    assert "scores" not in found
    gray = torch.full_like(photo, float(photo.mean()))
    for layer, error in zip(found["layers"], found["error"], strict=True):
        wanted, flat = (model.features(x, layer)[layer] for x in (photo, gray))
        assert error < 0.6 * (flat - wanted).square().sum() / wanted.square().sum()
    assert found["psnr"][0] > 10 * torch.log10(1 / (gray - photo).square().mean()) + 1


def test_a_learned_picture_has_the_images_size() -> None:
    model = sl.load("sightnet_plain")
    found = sl.inversion(model, smooth(2, 70), layer="relu4_2", kind="learned").values
    assert found["image"].shape == (2, 3, 70, 70)


def test_the_generator_knows_one_network(tiny: sl.Model) -> None:
    plain = sl.load("sightnet_plain")
    for model, layer, part in (
        (tiny, "depth", "features of sightnet_plain with its embedded weights, not on those of"),
        (tiny, "conv1", "not on those of"),
        (sl.load("sightnet", weights="random"), "relu4_2", "embedded weights"),
        (plain, "relu1", "relu1 has no generator; choose from relu4_2, penultimate"),
        (plain, "relu44", "no layer named 'relu44'; did you mean relu4"),
    ):
        with pytest.raises(sl.SightlineError, match=part):
            sl.inversion(model, smooth(1, 64), layer=layer, kind="learned")


# ── from a store ──


@pytest.fixture(scope="module")
def kept(tiny: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A scan of three images that remembers two layers."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(smooth(3)):
        sl.write(image[None], folder / f"{number}.png")
    return sl.scan(tiny, folder, store=folder / "kept.scan", vectors=("penultimate", "conv2"))


def test_a_stored_vector_is_inverted_without_its_image(tiny: sl.Model, kept: sl.Scan) -> None:
    """The picture is the same whatever the image beside it, its error that of its mean features,
    and it comes near the vector.
    """
    one, other = (
        sl.inversion(tiny, image, store=kept.path, id=1, layer="conv2", steps=20).values
        for image in (smooth(), smooth(seed=9))
    )
    assert torch.equal(one["image"], other["image"])
    wanted, found = (
        kept.vectors("conv2")[1],
        tiny.features(one["image"], "conv2")["conv2"].mean((2, 3))[0],
    )
    torch.testing.assert_close(
        one["error"][0, 0],
        (found - wanted).square().sum() / wanted.square().sum(),
        rtol=1e-4,
        atol=1e-6,
    )
    assert one["error"][0, 0] < 0.2 * -one["scores"][0, 0]
    assert not torch.equal(
        one["image"],
        sl.inversion(tiny, smooth(), store=kept.path, layer="conv2", steps=20).values["image"],
    )


def test_all_layers_that_a_store_keeps_are_inverted(tiny: sl.Model, kept: sl.Scan) -> None:
    values = sl.inversion(tiny, smooth(2), store=str(kept.path), steps=2).values
    assert values["layers"] == list(kept.facts["vectors"])
    assert values["image"].shape == (4, 3, 32, 32)


def test_what_a_store_cannot_give_is_refused(tiny: sl.Model, kept: sl.Scan) -> None:
    for knobs, part in (
        ({"id": 3}, "id is 3"),
        ({"layer": "conv1"}, "vectors of layer"),
        ({"patch": 2}, "leave out patch"),
        ({"kind": "learned"}, "choose kind lbfgs, pixels or fourier"),
    ):
        with pytest.raises(sl.SightlineError, match=part):
            sl.inversion(tiny, smooth(), store=kept.path, **knobs)
    with pytest.raises(sl.SightlineError, match="was made with"):
        sl.inversion(sl.load(small_network(), labels=LABELS, size=32), smooth(), store=kept.path)


def test_layers_that_do_not_see_the_image_are_left_out_by_depth() -> None:
    class Positions(nn.Module):
        """Adds a table of positions, which a layer makes of nothing."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Linear(1, 6)
            self.conv = nn.Conv2d(3, 6, 4, stride=4)
            self.head = nn.Linear(6, 3)

        def forward(self, image: Tensor) -> Tensor:
            rows = torch.linspace(0, 1, image.shape[2] // 4).view(1, -1, 1)
            table = self.table(rows).transpose(1, 2).unsqueeze(3)
            return self.head((self.conv(image) + table).mean((2, 3)))

    model = sl.load(Positions(), size=16)
    assert next(iter(model.layers)) == "table"
    result = sl.inversion(model, smooth(side=16), steps=2, k=10)
    assert "table" not in result.captions["inversion"]
    assert "conv" in result.captions["inversion"]
