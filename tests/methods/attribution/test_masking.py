"""Fills, class indices and the figure that occlusion and RISE share."""

import pytest
import torch
from helpers import LABELS
from torch import Tensor

import sightline as sl
from sightline.images.plotting.maps import overlay_signed_map, render_signed_map
from sightline.methods.attribution.masking import (
    choose_class_indices,
    describe_score_panel,
    draw_score_panel,
    make_fill_images,
    squeeze_single_label,
)

HEIGHT = 9
WIDTH = 13


def pictures() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def test_the_mean_fill_is_each_images_own_colour() -> None:
    fill = make_fill_images(pictures(), "mean", 4)
    for i, image in enumerate(pictures()):
        for channel in range(3):
            mean = sum(image[channel].flatten().tolist()) / (HEIGHT * WIDTH)
            assert fill[i, channel].unique().item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("fill", "gray"), [("gray", 0.5), ("zero", 0.0), (0.25, 0.25), (1, 1.0)])
def test_a_gray_fill_is_one_value(fill: float | str, gray: float) -> None:
    assert torch.equal(make_fill_images(pictures(), fill, 4), torch.full_like(pictures(), gray))


@pytest.mark.parametrize("fill", ["grey", True])
def test_another_fill_is_refused(fill: str | bool) -> None:
    with pytest.raises(sl.SightlineError, match="it must be a number from 0 to 1, gray, mean"):
        make_fill_images(pictures(), fill, 4)


def test_class_indices_are_images_by_labels(tiny: sl.Model) -> None:
    top = tiny.logits(pictures()).argmax(1).tolist()
    index = choose_class_indices(tiny, ("dog", "top", 0), pictures())
    assert index.tolist() == [[LABELS.index("dog"), top[i], 0] for i in range(2)]
    assert choose_class_indices(tiny, "dog", pictures()).tolist() == [[3], [3]]


def test_only_a_list_of_labels_keeps_their_axis() -> None:
    values = {"score": torch.arange(4.0).view(2, 2)}
    assert squeeze_single_label(values, "dog")["score"].tolist() == [0, 2]
    assert squeeze_single_label(values, ["dog"])["score"].tolist() == [[0, 1], [2, 3]]
    assert describe_score_panel("dog") == "and their overlay"
    assert describe_score_panel(("dog",)) == "one attribution for each label"


def test_each_image_has_one_scale_for_all_labels() -> None:
    attributions = torch.zeros(2, 2, HEIGHT, WIDTH)
    attributions[0, 0, 1, 2] = 4.0
    attributions[0, 1, 3, 4] = -2.0
    attributions[1, 1, 5, 6] = 8.0
    panel, limit = draw_score_panel(pictures(), attributions, torch.ones(2, 2))
    assert limit == 4
    assert panel.shape == (1, 3, 2 * HEIGHT + 6, 3 * WIDTH + 2 * 6)
    for label in range(2):
        column = (label + 1) * (WIDTH + 6)
        for i, scale in enumerate((4.0, 8.0)):
            row = i * (HEIGHT + 6)
            heatmap = panel[0, :, row : row + HEIGHT, column : column + WIDTH]
            assert torch.equal(heatmap, render_signed_map(attributions[i : i + 1, label], scale)[0])


def test_a_single_attribution_is_also_laid_over_the_image() -> None:
    attributions = torch.randn(2, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    panel, limit = draw_score_panel(pictures(), attributions, torch.ones(2, 1))
    overlay = panel[0, :, :HEIGHT, -WIDTH:]
    expected = overlay_signed_map(pictures()[:1], attributions[:1, 0], limit)
    assert torch.equal(overlay, expected[0])


def test_rounding_errors_stay_white() -> None:
    """Drops of 1e-6 of a score of 20 are noise: their scale is that of the score's rounding."""
    attributions = torch.full((1, 1, HEIGHT, WIDTH), 2e-5)
    panel, limit = draw_score_panel(pictures()[:1], attributions, torch.full((1, 1), -20.0))
    assert limit == pytest.approx(2e-4)
    assert panel[..., WIDTH + 6 : 2 * WIDTH + 6].min() > 0.8
