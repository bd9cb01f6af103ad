"""Adaptive instance norm and the decoder for any style."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.adain import (
    AdaINStylizer,
    apply_adain,
    compute_channel_statistics,
)
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import (
    AnyStyleNetwork,
    read_fixed_style_network,
    read_style_network,
    write_any_style_network,
    write_fixed_style_network,
)
from sightline.generators.export import export_onnx, truncate_network
from sightline.generators.training.any_style import IDENTITY_PERIOD, IDENTITY_WEIGHT, AnyStyleTask
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import train_stylizer
from sightline.images import io as images


def features(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(seed)) * scale + seed


@pytest.fixture(scope="module")
def engine() -> AdaINStylizer:
    return AdaINStylizer(sl.load()).eval()


@pytest.fixture
def styles(engine: AdaINStylizer) -> AnyStyleNetwork:
    return AnyStyleNetwork(engine)


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    names = tuple(tmp_path / f"{name}.png" for name in ("wave", "night", "scream"))
    for seed, name in enumerate(names):
        images.write(smooth(side=60, seed=30 + seed), name)
    return TrainingPlan(
        names,
        tmp_path / "out",
        "adaptive",
        size=32,
        style_size=48,
        batch=2,
        steps=10,
        every=5,
        lr=3e-3,
    )


def photos(seed: int = 0) -> PhotoDataset:
    return PhotoDataset(
        (smooth(6, 40, seed) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy(),
        f"smooth {seed}",
    )


def fabric() -> Any:
    pytest.importorskip("lightning_fabric")
    pytest.importorskip("tensorboard")
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def test_it_is_instance_norm_with_the_styles_moments() -> None:
    content, style = features(1), features(2, 3.0)
    found, expected = (
        apply_adain(content, compute_channel_statistics(style)),
        torch.empty_like(content),
    )
    for n in range(2):
        for c in range(5):
            mean, deviation = style[n, c].mean(), style[n, c].std(correction=0)
            expected[n, c] = (
                nn.functional.instance_norm(content[n : n + 1, c : c + 1])[0, 0] * deviation + mean
            )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for one, other in zip(
        compute_channel_statistics(found), compute_channel_statistics(style), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        apply_adain(content, compute_channel_statistics(content)), content, rtol=1e-4, atol=1e-4
    )
    wider = style.repeat(1, 1, 2, 3)
    torch.testing.assert_close(
        apply_adain(content, compute_channel_statistics(wider)), found, rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
def test_content_as_its_own_style_is_the_decoders_reconstruction(engine: AdaINStylizer) -> None:
    image, other = smooth(side=64, seed=3), smooth(side=50, seed=4)
    plain = engine.decode_features(engine.encode_image(image), 64, 64)
    torch.testing.assert_close(
        engine(image, engine.make_style_row(image)), plain, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        engine(image, engine.make_style_row(other, 0.0)), plain, rtol=1e-4, atol=1e-5
    )
    assert (engine(image, engine.make_style_row(other)) - plain).abs().mean() > 1e-5


@torch.no_grad()
def test_a_blend_of_styles_is_the_blend_of_their_features(
    engine: AdaINStylizer, styles: AnyStyleNetwork, tmp_path: Path
) -> None:
    """Section 7.1: the decoder of the weighted sum of the features that each style gives; strength the same way."""
    image, pictures = smooth(side=64, seed=3), [smooth(side=60, seed=seed) for seed in (4, 5)]
    for name, picture in zip("ab", pictures, strict=True):
        images.write(picture, tmp_path / f"{name}.png")
    mix = styles.make_mix({str(tmp_path / "a.png"): 3, str(tmp_path / "b.png"): 1}, strength=0.6)
    content = engine.encode_image(image)
    one, two = (
        apply_adain(
            content,
            compute_channel_statistics(engine.encode_image(sl.read(tmp_path / f"{name}.png"))),
        )
        for name in "ab"
    )
    expected = engine.decode_features(0.4 * content + 0.6 * (0.75 * one + 0.25 * two), 64, 64)
    torch.testing.assert_close(restyle_images(styles, image, mix), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (53, 70), (16, 90)])
def test_any_size(engine: AdaINStylizer, height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert engine(image, engine.make_style_row(smooth(side=48))).shape == image.shape


def test_the_losses_are_the_papers(plan: TrainingPlan) -> None:
    """Equations 11 to 13 written out, in units of what is asked for; the third of three steps, where the crops are shifted."""
    model, step = sl.load(), IDENTITY_PERIOD - 1
    plan.out.mkdir()
    lesson = AnyStyleTask(plan, photos(), model, fabric())
    engine = lesson.network
    told = {
        name: value.detach()
        for name, value in lesson.compute_losses(engine, step, slice(None)).items()
    }
    photo, style = photos().draw_batch(0, step, 2, 32), lesson.styles.draw_batch(1, step, 2, 32)
    style[1] = photo[1]  # the one of four that is a photograph and itself
    with torch.no_grad():
        made = engine(photo, engine.make_style_row(style))
        cropped, aim = (picture[:, :, 3:28, 0:25] for picture in (made, photo))
        content, manner = torch.zeros(2), torch.zeros(2)
        for layer in engine.layers:
            wanted, found = (
                model.features(style, layer)[layer],
                model.features(cropped, layer)[layer],
            )
            for what in (
                lambda x: x.mean((2, 3)),
                lambda x: (x.var((2, 3), correction=0) + 1e-5).sqrt(),
            ):
                manner += (
                    (what(found) - what(wanted)).square().mean(1) / what(wanted).square().mean() / 4
                )
        target = apply_adain(
            model.features(aim, "relu3_1")["relu3_1"], compute_channel_statistics(wanted)
        )
        content = (found - target).square().mean((1, 2, 3)) / target.square().mean()
    torch.testing.assert_close(told["content"], content, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(told["style"], manner, rtol=1e-3, atol=1e-5)
    pixels = torch.tensor([0, float((made - photo)[1].square().mean())])
    torch.testing.assert_close(told["pixels"], pixels, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        told["loss"],
        content + 5 * manner + IDENTITY_WEIGHT * pixels + told["tv"],
        rtol=1e-3,
        atol=1e-5,
    )


def test_it_learns_resumes_to_the_bit_and_leaves_the_encoder_alone(plan: TrainingPlan) -> None:
    model = sl.load()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    told = list[float]()
    whole = train_stylizer(
        plan, photos(), model, fabric(), lambda step: told.append(step.losses["loss"])
    )
    assert sum(told[-3:]) < 0.9 * sum(told[:3])
    assert all(
        torch.equal(value, before[name]) for name, value in model.network.state_dict().items()
    )
    halves = TrainingPlan(**{**vars(plan), "out": plan.out.with_name("halves")})
    train_stylizer(halves, photos(), model, fabric(), lambda step: step.index == 7)
    train_stylizer(halves, photos(), model, fabric())
    one, two = (
        torch.load(out / "checkpoint.pt", weights_only=True)["state"]
        for out in (plan.out, halves.out)
    )
    assert all(torch.equal(one["network"][name], two["network"][name]) for name in one["network"])
    assert (plan.out / "losses.jsonl").read_text() == (halves.out / "losses.jsonl").read_text()
    found = read_style_network(whole)
    assert isinstance(found, AnyStyleNetwork)
    assert found.metadata["step"] == 10
    image = smooth(side=48)
    mix = found.make_mix(str(plan.styles[0]))
    with torch.no_grad():
        engine = AdaINStylizer(model)
        engine.load_state_dict(one["network"])
        torch.testing.assert_close(
            restyle_images(found, image, mix), engine(image, mix), rtol=0, atol=0.01
        )


def test_exported_it_gives_the_same_picture(styles: AnyStyleNetwork, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert (
        export_onnx(styles, tmp_path / "any.onnx")
        == "image N×3×H×W and style N×3×h×w in [0, 1], alpha N"
    )
    session = runtime.InferenceSession(
        str(tmp_path / "any.onnx"), providers=["CPUExecutionProvider"]
    )
    for count, height, width in ((1, 48, 48), (2, 37, 60)):
        image, style, alpha = (
            torch.rand(count, 3, height, width),
            torch.rand(count, 3, 50, 41),
            torch.linspace(0.5, 1, count),
        )
        with torch.no_grad():
            expected = styles.network(image, styles.network.make_style_row(style, alpha))
        found = session.run(
            None, {"image": image.numpy(), "style": style.numpy(), "alpha": alpha.numpy()}
        )[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg16"])
def test_other_encoders(name: str) -> None:
    """Their first layers without hooks give what the network gives; features that are a pixel short are filled up."""
    network = AdaINStylizer(sl.load(name, weights="random"))
    image = smooth(side=70)[..., :61]
    alone = truncate_network(network.model.network, network.deepest_layer)(
        network.model.normalize(image)
    )
    torch.testing.assert_close(alone, network.encode_image(image), rtol=1e-4, atol=1e-5)
    assert network(image, network.make_style_row(smooth(side=48))).shape == image.shape
    assert (network.stride, network.needs_resize) == (4 if name == "squeezenet1_0" else 8, True)


def test_what_is_refused(
    styles: AnyStyleNetwork, tiny: sl.Model, plan: TrainingPlan, tmp_path: Path
) -> None:
    with pytest.raises(
        sl.SightlineError, match="Sequential can't be the encoder of a network for any style; choose from sightnet"
    ):
        AdaINStylizer(tiny)
    images.write(smooth(side=20), tmp_path / "speck.png")
    for name, said in (
        ("speck.png", "speck.png is 20×20 pixels at this style size"),
        ("wav.png", "did you mean wave.png"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            styles.make_mix(str(tmp_path / name))
    for change, said in (
        ({"styles": ()}, "needs a folder of style images"),
        ({"styles": (tmp_path / "wav.png",)}, "did you mean wave.png"),
        ({"size": 40, "style_size": 32}, "kept with 32 pixels"),
        ({"extend": tmp_path}, "no rows to extend"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            train_stylizer(TrainingPlan(**{**vars(plan), **change}), photos(), sl.load(), fabric())
        assert not plan.out.exists()
    write_any_style_network(styles.network, tmp_path / "any.safetensors")
    with pytest.raises(
        sl.SightlineError,
        match=r"any\.safetensors is a network for any style; a network with a fixed set of styles is needed here",
    ):
        read_fixed_style_network(tmp_path / "any.safetensors")
    write_fixed_style_network(
        make_stylizer(0, 1, width=4, blocks=1), ["a"], tmp_path / "one.safetensors"
    )
    assert not isinstance(read_style_network(tmp_path / "one.safetensors"), AnyStyleNetwork)
