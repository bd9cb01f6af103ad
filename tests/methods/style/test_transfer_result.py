"""The figure and the caption of a style transfer."""

import torch

from sightline.methods.style.transfer_result import (
    StyleTransfer,
    collect_values,
    crop_style_for_figure,
    describe_style_transfer,
)
from sightline.optim.multiscale import CoarseToFineResult


def make_transfer(**changes: object) -> StyleTransfer:
    run = CoarseToFineResult(
        torch.zeros(1, 3, 8, 9), scores=[-3.0, -2.0, -1.5], weighted_evaluations=2.5
    )
    facts = {
        "run": run,
        "stage_count": 2,
        "tile_side": None,
        "style_losses": {"relu1": (0.25, 10.0), "relu2": (0.5, 2.5)},
        "content_losses": {"relu3": 0.2, "relu4": 0.4},
    }
    return StyleTransfer(**{**facts, **changes})


def test_the_caption_has_losses_tiles_and_notes() -> None:
    caption = describe_style_transfer(make_transfer(tile_side=192), "w2", ["Step 2 gave NaN."])
    assert caption == (
        "The photograph, the style, and the result after 3 steps at 2 sizes. Mean squared content"
        " difference 0.3 at relu3, relu4. Wasserstein distance by layer: relu1 0.25, relu2 0.5; in"
        " total 12.5 as the preset's authors count. In tiles of 192 pixels. Step 2 gave NaN."
    )


def test_the_caption_leaves_out_what_there_is_not() -> None:
    caption = describe_style_transfer(make_transfer(stage_count=1, content_losses={}), "gram", [])
    assert "at one size. Gatys' E by layer" in caption
    assert "content" not in caption
    assert "tiles" not in caption


def test_values_have_their_names() -> None:
    images = torch.rand(2, 3, 8, 9)
    values = collect_values(images, make_transfer(), ["note"])
    assert values["image"] is images
    assert values["scores"].tolist() == [-3.0, -2.0, -1.5]
    assert values["work"] == 2.5
    assert values["style_losses"] == {"relu1": [0.25, 10.0], "relu2": [0.5, 2.5]}
    assert values["content_losses"] == {"relu3": 0.2, "relu4": 0.4}
    assert values["tile"] is None
    assert values["notes"] == ["note"]


def test_a_long_style_is_cropped_to_twice_its_short_side() -> None:
    assert crop_style_for_figure(torch.zeros(1, 3, 20, 70)).shape == (1, 3, 20, 40)
    assert crop_style_for_figure(torch.zeros(1, 3, 70, 20)).shape == (1, 3, 40, 20)
    assert crop_style_for_figure(torch.zeros(1, 3, 30, 50)).shape == (1, 3, 30, 50)
