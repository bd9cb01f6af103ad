"""RISE against a loop with the same masks, and in closed form on a linear network."""

import itertools

import numpy as np
import pytest
import torch
from helpers import smooth
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.attribution.rise import sample_rise_masks

LABELS = ("ant", "bee", "cat", "dog")


def loaded(net: nn.Module, size: int = 16) -> sl.Model:
    return sl.load(
        net, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), labels=LABELS, size=size, device="cpu"
    )


class PadAndFlatten(nn.Module):
    """Flattens images, padded to one size: a Model also runs its network on a square blank."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, self.width - x.shape[3], 0, self.height - x.shape[2])
        return F.pad(x, padding).flatten(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def pictures(count: int = 2, height: int = 16, width: int = 19) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_it_is_the_mean_score_with_each_pixel_visible(score: str) -> None:
    model, masks = loaded(network()), list(sample_rise_masks((16, 19), 5, 0.4, 23, seed=3))
    found = sl.rise(
        model,
        pictures(),
        label=2,
        samples=23,
        cells=5,
        keep=0.4,
        fill=0.25,
        score=score,
        batch=4,
        seed=3,
    ).values
    for n, image in enumerate(pictures()):
        weighed, visible, total = np.zeros((16, 19)), np.zeros((16, 19)), 0.0
        for mask in masks:
            logits = model.logits((0.25 * (1 - mask) + image * mask)[None].clamp(0, 1))[0].detach()
            output = float(logits.softmax(0)[2] if score == "probability" else logits[2])
            weighed += output * mask.double().numpy()
            visible += mask.double().numpy()
            total += output
        assert np.allclose(found["map"][n].numpy(), weighed / visible, atol=1e-5)
        assert found["mean"][n].item() == pytest.approx(total / 23, abs=1e-5)
        difference = weighed / visible - total / 23
        assert np.allclose(found["attribution"][n].numpy(), difference, atol=1e-5)
    assert found["masks"] == 23


def test_masks_are_shifted_grids_enlarged() -> None:
    """Each mask is a crop, at a shift below a cell, of some 0/1 grid enlarged bilinearly.

    The bilinear weights are written out.
    """

    def line(cells: int, cell: int) -> np.ndarray:
        count = (cells + 1) * cell
        table = np.zeros((count, cells))
        for i in range(count):
            at = min(max((i + 0.5) * cells / count - 0.5, 0), cells - 1)
            low = int(at)
            table[i, low] += 1 - (at - low)
            table[i, min(low + 1, cells - 1)] += at - low
        return table

    rows, columns = line(3, 3), line(3, 4)
    grids = [np.array(bits).reshape(3, 3) for bits in itertools.product((0, 1), repeat=9)]
    for mask in sample_rise_masks((8, 10), 3, 0.5, 12, seed=0):
        crops = (
            (rows @ grid @ columns.T)[y : y + 8, x : x + 10]
            for grid in grids
            for y in range(3)
            for x in range(4)
        )
        assert mask.shape == (8, 10)
        assert any(np.allclose(mask.numpy(), crop, atol=1e-5) for crop in crops)


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_every_pixel_is_visible_as_often_as_cells_are_kept(keep: float) -> None:
    masks = torch.stack(list(sample_rise_masks((9, 11), 4, keep, 4000, seed=1)))
    assert (masks.mean(0) - keep).abs().max() < 0.04
    assert masks.min() >= 0
    assert masks.max() <= 1


def test_on_a_linear_network_it_tends_to_the_closed_form() -> None:
    """E[score · M(x)] / E[M(x)] over all 16 grids of 2×2 and all 6 shifts.

    The score is linear in the image.
    """
    torch.manual_seed(2)
    linear = nn.Sequential(PadAndFlatten(4, 6), nn.Linear(3 * 4 * 6, 4))
    with torch.no_grad():
        linear[1].weight.mul_(4)
    model, image = loaded(linear, 4), pictures(1, 4, 6)
    grids = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
    large = F.interpolate(grids, size=(6, 9), mode="bilinear", align_corners=False)[:, 0]
    masks = torch.cat([large[:, y : y + 4, x : x + 6] for y in (0, 1) for x in (0, 1, 2)]).double()
    std = torch.tensor((0.25, 0.2, 0.3)).double().view(3, 1, 1)
    pixel_weights = (
        linear[1].weight[1].detach().double().view(3, 4, 6) / std * (image[0].double() - 0.5)
    ).sum(0)
    together = torch.einsum("myx,mvu->yxvu", masks, masks) / len(masks)
    expected = float(model.logits(torch.full((1, 3, 4, 6), 0.5))[0, 1]) + (
        together * pixel_weights
    ).sum((2, 3)) / masks.mean(0)
    found = sl.rise(
        model, image, label=1, samples=20_000, cells=2, score="logit", batch=4000
    ).values["map"][0]
    spread = float(expected.max() - expected.min())
    assert spread > 0.2
    assert (found - expected).abs().max() < 0.03 * spread


def test_several_labels_are_each_alone() -> None:
    model = loaded(network())
    several = sl.rise(model, pictures(), label=(2, "top", "ant"), samples=9).values
    assert several["map"].shape == (2, 3, 16, 19)
    for i, label in enumerate((2, "top", "ant")):
        one = sl.rise(model, pictures(), label=label, samples=9).values
        for name in ("map", "mean", "score", "label"):
            assert torch.allclose(several[name][:, i], one[name], atol=1e-6), name


def test_an_output_that_does_not_depend_on_the_image_leaves_an_empty_map() -> None:
    constant = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    nn.init.zeros_(constant[2].weight)
    result = sl.rise(loaded(constant), pictures(1), samples=5)
    assert torch.allclose(
        result.values["map"], result.values["score"][:, None, None].expand(-1, 16, 19), atol=1e-6
    )
    assert (
        result.panels["rise"][..., 25:44].min() > 0.9
    )  # the map between image and overlay is white


def test_a_pixel_that_no_mask_shows_gets_the_mean() -> None:
    values = sl.rise(
        loaded(network()), pictures(), samples=2, cells=4, keep=0.01, seed=0, label=0
    ).values
    assert torch.allclose(
        values["map"], values["mean"][:, None, None].expand(-1, 16, 19), atol=1e-5
    )


def test_no_label_is_refused() -> None:
    with pytest.raises(sl.SightlineError, match="label is an empty list; give one class or more"):
        sl.rise(loaded(network()), pictures(), label=())


def test_the_parameters_older_name_is_still_taken(tiny: sl.Model) -> None:
    """In calls and in recipes; the new recipe has the new name."""
    image = smooth(1, side=40)[:, :, :32]
    by_new_name = sl.rise(tiny, image, samples=9, cells=4)
    by_old_name = sl.rise(tiny, image, masks=9, cells=4)  # type: ignore[call-arg]
    assert torch.equal(by_old_name.values["evidence"], by_new_name.values["evidence"])
    assert by_old_name.recipe["knobs"] == by_new_name.recipe["knobs"]
    assert "masks" not in by_old_name.recipe["knobs"]
    old_recipe = dict(by_new_name.recipe)
    old_recipe["knobs"] = {"masks": 9, **old_recipe["knobs"]}
    del old_recipe["knobs"]["samples"]
    again = sl.again(old_recipe, model=tiny, image=image)
    assert torch.equal(again.values["evidence"], by_new_name.values["evidence"])
