"""The task for any style: its losses written out, and that the encoder stays as it is."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.checkpoint import AnyStyleNetwork, read_style_network
from sightline.generators.training.any_style import (
    IDENTITY_PERIOD,
    IDENTITY_WEIGHT,
    WARMUP_SHARE,
    AnyStyleTask,
)
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingStep, train_stylizer
from sightline.images.io import pictures as images

ALL = slice(None)

ONE_PROCESS: Any = SimpleNamespace(rank_zero_first=nullcontext)


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    paths = tuple(tmp_path / f"{name}.png" for name in ("wave", "night", "scream"))
    for seed, path in enumerate(paths):
        images.write(smooth(side=60, seed=30 + seed)[..., :52, :], path)
    (tmp_path / "out").mkdir()
    return TrainingPlan(
        paths,
        tmp_path / "out",
        "adaptive",
        size=32,
        style_size=48,
        batch=2,
        steps=10,
        every=5,
        lr=3e-3,
    )


def make_photos(seed: int = 0) -> PhotoDataset:
    pixels = (smooth(6, 40, seed) * 255).round().byte().permute(0, 2, 3, 1)
    return PhotoDataset(pixels.contiguous().numpy(), f"smooth {seed}")


def compute_relative_error(value: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference of N×C×... over the mean square of the whole target: N."""
    return (value - target).square().flatten(1).mean(1) / target.square().mean()


def test_the_losses_are_the_papers(plan: TrainingPlan) -> None:
    """Equations 11 to 13 at step 3, where the crops are shifted by 3 rows and no columns."""
    step = IDENTITY_PERIOD - 1
    weighted_plan = replace(plan, content_weight=3.0, style_weight=0.5, tv_weight=0.25)
    model = sl.load()
    task = AnyStyleTask(weighted_plan, make_photos(), model, ONE_PROCESS)
    network = task.network
    losses = task.compute_losses(network, step, ALL)

    photo = make_photos().draw_batch(0, step, 2, 32)
    style = task.styles.draw_batch(1, step, 2, 32)
    style[1] = photo[1]  # the one pair of four that is a photograph and itself
    with torch.no_grad():
        stylized = network(photo, network.make_style_row(style))
        cropped_stylized = stylized[:, :, 3:28, 0:25]
        cropped_photo = photo[:, :, 3:28, 0:25]

        style_loss = torch.zeros(2)
        for layer in ("relu1", "relu2_1", "relu2_2", "relu3_1"):
            features = model.features(cropped_stylized, layer)[layer]
            style_features = model.features(style, layer)[layer]
            mean, style_mean = features.mean((2, 3)), style_features.mean((2, 3))
            deviation, style_deviation = (
                (x.var((2, 3), correction=0) + 1e-5).sqrt() for x in (features, style_features)
            )
            style_loss += compute_relative_error(mean, style_mean) / 4
            style_loss += compute_relative_error(deviation, style_deviation) / 4

        photo_features = model.features(cropped_photo, "relu3_1")["relu3_1"]
        normalized = torch.nn.functional.instance_norm(photo_features)
        target = normalized * style_deviation[..., None, None] + style_mean[..., None, None]
        content_loss = compute_relative_error(features, target)

    pixel_loss = torch.tensor([0, float((stylized - photo)[1].square().mean())])
    for name, expected in (
        ("content", content_loss),
        ("style", style_loss),
        ("pixels", pixel_loss),
        (
            "loss",
            3 * content_loss
            + 0.5 * style_loss
            + IDENTITY_WEIGHT * pixel_loss
            + 0.25 * losses["tv"],
        ),
    ):
        torch.testing.assert_close(losses[name].detach(), expected, rtol=1e-3, atol=1e-5)


def test_in_the_warmup_every_photograph_is_its_own_style(plan: TrainingPlan) -> None:
    """Content and style are logged there, and have no gradient."""
    task = AnyStyleTask(plan, make_photos(), sl.load(), ONE_PROCESS)
    last_warmup_step = int(WARMUP_SHARE * plan.steps) - 1
    losses = task.compute_losses(task.network, last_warmup_step, ALL)
    photo = make_photos().draw_batch(0, last_warmup_step, 2, 32)
    reconstruction = task.network(photo, task.network.make_style_row(photo))
    pixel_loss = (reconstruction - photo).square().mean((1, 2, 3))
    torch.testing.assert_close(losses["pixels"], pixel_loss, rtol=1e-4, atol=1e-6)
    assert losses["loss"].requires_grad
    assert not losses["content"].requires_grad
    assert not losses["style"].requires_grad
    after = task.compute_losses(task.network, last_warmup_step + 1, ALL)
    assert after["style"].requires_grad
    assert float(after["pixels"].detach().min()) == 0


def test_the_scale_is_the_root_mean_square_of_the_deepest_features(plan: TrainingPlan) -> None:
    model = sl.load()
    task = AnyStyleTask(plan, make_photos(), model, ONE_PROCESS)
    sample = make_photos().draw_batch(plan.seed, 2**32 - 1, 16, 32)
    features = model.features(sample, "relu3_1")["relu3_1"]
    torch.testing.assert_close(task.network.scale, features.square().mean().sqrt())


def test_a_sheet_shows_the_reconstruction_and_three_styles(plan: TrainingPlan) -> None:
    task = AnyStyleTask(plan, make_photos(), sl.load(), ONE_PROCESS)
    with torch.no_grad():
        sheet = task.make_sample_sheet(make_photos().pick_evenly(2))
    assert sheet.shape == (1, 3, 2 * 42 - 2, 5 * 42 - 2)


def test_it_learns_resumes_to_the_bit_and_leaves_the_encoder_alone(
    plan: TrainingPlan, make_fabric: Callable[..., Any]
) -> None:
    model = sl.load()
    encoder_before = {name: value.clone() for name, value in model.network.state_dict().items()}
    losses: list[float] = []

    def record(step: TrainingStep) -> None:
        losses.append(step.losses["loss"])

    path = train_stylizer(plan, make_photos(), model, make_fabric(), record)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, encoder_before[name])

    resumed = replace(plan, out=plan.out.with_name("resumed"))
    train_stylizer(resumed, make_photos(), model, make_fabric(), lambda step: step.index == 7)
    train_stylizer(resumed, make_photos(), model, make_fabric())
    state, resumed_state = (
        torch.load(out / "checkpoint.pt", weights_only=True)["state"]["network"]
        for out in (plan.out, resumed.out)
    )
    assert all(torch.equal(state[name], resumed_state[name]) for name in state)
    log, resumed_log = (out / "losses.jsonl" for out in (plan.out, resumed.out))
    assert log.read_text() == resumed_log.read_text()

    style_network = read_style_network(path)
    assert isinstance(style_network, AnyStyleNetwork)
    assert style_network.metadata["step"] == 10
    image = smooth(side=56)[..., :40, :]
    mix = style_network.make_mix(str(plan.styles[0]))
    trained_network = AdaINStylizer(model)
    trained_network.load_state_dict(state)
    with torch.no_grad():
        expected = trained_network(image, mix)
    torch.testing.assert_close(
        restyle_images(style_network, image, mix), expected, rtol=0, atol=0.01
    )


def test_plans_that_cannot_be_carried_out(plan: TrainingPlan, tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"styles": ()}, "needs a folder of style images"),
        ({"styles": (tmp_path / "wav.png",)}, "did you mean wave.png"),
        ({"size": 40, "style_size": 32}, "kept with 32 pixels"),
        ({"extend": tmp_path}, "no rows to extend"),
    ]
    for change, message in changes:
        with pytest.raises(sl.SightlineError, match=message):
            AnyStyleTask(replace(plan, **change), make_photos(), sl.load(), ONE_PROCESS)
        assert not list(plan.out.iterdir())
