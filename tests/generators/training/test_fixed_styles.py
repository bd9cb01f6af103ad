"""The task for a fixed set of styles: its loss, whose turn it is, and rows for more styles."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import (
    FixedStylesTask,
    TrainingPlan,
    crop_by_step,
    extend_stylizer,
    make_photo_sheet,
    read_style_image,
)
from sightline.images.io import pictures as images
from sightline.optim.objectives.objective import tv

ALL = slice(None)


@pytest.fixture(scope="module")
def photos() -> PhotoDataset:
    pixels = (smooth(8, 40, seed=5) * 255).round().byte().permute(0, 2, 3, 1)
    return PhotoDataset(pixels.contiguous().numpy(), "smooth")


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    for seed, name in enumerate(("wave", "night", "scream")):
        images.write(smooth(side=56, seed=30 + seed)[..., :48, :], tmp_path / f"{name}.png")
    styles = tuple(tmp_path / f"{name}.png" for name in ("wave", "night", "scream"))
    return TrainingPlan(styles, tmp_path / "out", width=4, blocks=1, size=32, batch=4)


def test_the_loss_is_the_weighted_sum_of_its_terms(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    weighted_plan = replace(plan, content_weight=2.0, style_weight=7.0, tv_weight=0.5)
    task = FixedStylesTask(weighted_plan, photos, tiny)
    losses = task.compute_losses(task.network, 3, ALL)
    assert losses["content"].shape == losses["style"].shape == (4,)
    expected = 2 * losses["content"] + 7 * losses["style"] + 0.5 * losses["tv"]
    torch.testing.assert_close(losses["loss"], expected)
    assert (losses["content"] - losses["style"]).abs().min() > 1e-3


def test_the_terms_are_of_the_shifted_crops_in_the_style_whose_turn_it_is(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    """Step 6 of 3 styles and 4 images: images 24 to 27, the crops shifted 2 down and 1 right."""
    task = FixedStylesTask(plan, photos, tiny)
    losses = task.compute_losses(task.network, 6, ALL)
    photo = photos.draw_batch(plan.seed, 6, 4, 32)
    style = torch.tensor([0, 1, 2, 0])
    stylized = task.network(photo, torch.eye(3)[style])
    crop = (..., slice(2, 31), slice(1, 30))
    terms = task.perceptual_loss.compute_terms(stylized[crop], photo[crop], style)
    torch.testing.assert_close(losses["content"], terms.content)
    torch.testing.assert_close(losses["style"], terms.style)
    torch.testing.assert_close(losses["tv"], tv().bind(tiny)(stylized[crop], {}))


def test_processes_share_the_batch(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    task = FixedStylesTask(plan, photos, tiny)
    whole = task.compute_losses(task.network, 5, ALL)["loss"]
    for rank in range(2):
        part = task.compute_losses(task.network, 5, slice(rank, None, 2))["loss"]
        torch.testing.assert_close(part, whole[rank::2], rtol=1e-4, atol=1e-5)


def test_crops_move_over_all_offsets_of_the_stride() -> None:
    image = torch.arange(12.0 * 15).view(1, 1, 12, 15)
    offsets: set[tuple[int, int]] = set()
    for step in range(16):
        crop = crop_by_step(image, step)
        assert crop.shape == (1, 1, 9, 12)
        y, x = divmod(int(crop[0, 0, 0, 0]), 15)
        assert (y, x) == (step % 4, step // 4)
        offsets.add((y, x))
    assert len(offsets) == 16


@torch.no_grad()
def test_new_rows_start_as_the_mean_and_only_norms_are_trained() -> None:
    network = make_stylizer(1, 2, width=4, blocks=1)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    larger = extend_stylizer(network, 2)
    image = smooth(side=40, seed=3)[..., :32, :]
    for row, larger_row in (
        ([1.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        ([0.5, 0.5], [0.0, 0.0, 1.0, 0.0]),
        ([0.5, 0.5], [0.0, 0.0, 0.0, 1.0]),
    ):
        expected = network(image, torch.tensor([row]))
        output = larger(image, torch.tensor([larger_row]))
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    trained = {name for name, value in larger.named_parameters() if value.requires_grad}
    norms = {name for name, _ in larger.named_parameters() if ".norm." in name}
    assert trained == norms
    with pytest.raises(sl.SightlineError, match="batch norm and one style"):
        extend_stylizer(make_stylizer(0, 1, width=4, blocks=1, norm="batch"), 1)


def test_a_sheet_has_a_row_for_each_photograph() -> None:
    photos = torch.zeros(2, 3, 10, 14)
    variants = [torch.full_like(photos, 0.25), torch.stack([photos[0] + 0.5, photos[1] + 0.75])]
    sheet = make_photo_sheet(photos, variants)
    colors = {float(value) for value in sheet.unique()}
    assert {0.0, 0.25, 0.5, 0.75} <= colors
    rows = (sheet == 0.75).any(1)[0].nonzero()
    assert rows[:, 0].min() > sheet.shape[2] / 2
    assert rows[:, 1].min() > 2 * sheet.shape[3] / 3 - 4


def test_style_images_are_reduced_and_never_enlarged(plan: TrainingPlan) -> None:
    assert read_style_image(plan.styles[0], 24).shape == (1, 3, 24, 28)
    assert read_style_image(plan.styles[0], 100).shape == (1, 3, 48, 56)


def test_plans_that_cannot_be_carried_out(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, tmp_path: Path
) -> None:
    images.write(smooth(side=8)[..., :4, :5], tmp_path / "speck.png")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"styles": ()}, "at least one style image"),
        ({"norm": "batch"}, "room for one style, not 3"),
        ({"styles": (tmp_path / "speck.png",)}, "speck.png is 4×5 pixels"),
        ({"styles": (tmp_path / "wav.png",)}, "did you mean wave.png"),
    ]
    for change, message in changes:
        with pytest.raises(sl.SightlineError, match=message):
            FixedStylesTask(replace(plan, **change), photos, tiny)
