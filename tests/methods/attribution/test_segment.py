"""Segmentation: seeds are quantiles of the map, colours decide between them."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.methods.attribution.segment import select_seeds

HEIGHT = 44
WIDTH = 52


def distance(row: float, column: float) -> Tensor:
    """How far each pixel lies from one."""
    rows, columns = torch.arange(HEIGHT)[:, None] - row, torch.arange(WIDTH)[None] - column
    return (rows.square() + columns.square()).sqrt()


class Weighing(nn.Module):
    """Scores are weighted sums of the pixels; smaller images are padded with zeros."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, WIDTH - x.shape[3], 0, HEIGHT - x.shape[2]))
        return torch.einsum("nchw,khw->nk", padded, self.weights)


def weighing(*weights: Tensor) -> sl.Model:
    """A model whose gradients with respect to each colour are the weights HEIGHT×WIDTH."""
    return sl.load(
        Weighing(torch.stack(weights)),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        size=HEIGHT,
        labels=("disc", "flat")[: len(weights)],
    )


DISC = distance(22, 26) < 13
# Falls off from the disc's middle, across its border: only the colours tell where that is.
FADING = torch.exp(-(distance(24, 25) / 20).square())


def picture(*masks: Tensor, noise: float = 0.02) -> Tensor:
    """Orange where a mask is, else bluish, with a little noise."""
    where = torch.stack(masks).any(0)
    colors = torch.where(
        where,
        torch.tensor([0.8, 0.45, 0.2]).view(3, 1, 1),
        torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1),
    )
    return (
        colors + noise * torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)[None]


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return weighing(FADING, torch.ones(HEIGHT, WIDTH))


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("smooth", [0.0, 0.01, 0.05])
def test_finds_the_disc(model: sl.Model, steps: int, smooth: float) -> None:
    values = sl.segment(model, picture(DISC), label="disc", steps=steps, smooth=smooth).values
    assert values["mask"].dtype == torch.bool
    assert overlap(values["mask"][0], DISC) > 0.97
    assert overlap(values["seeds"][0] > 0, DISC) < 0.5, "the seeds alone don't tell"
    assert values["share"].item() == pytest.approx(float(values["mask"].float().mean()))


def test_seeds_are_the_quantiles_of_the_gradient() -> None:
    weight = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    values = sl.segment(weighing(weight), picture(DISC), label=0, smooth=0).values
    sizes = sorted(abs(float(w)) for w in weight.flatten())

    def quantile(share: float) -> float:
        place = share * (len(sizes) - 1)
        low = int(place)
        return sizes[low] + (place - low) * (sizes[low + 1] - sizes[low])

    torch.testing.assert_close(values["map"][0], weight.abs())
    assert torch.equal(values["seeds"][0] > 0, weight.abs() > quantile(0.95))
    assert torch.equal(values["seeds"][0] < 0, weight.abs() < quantile(0.3))
    assert torch.all(values["mask"][values["seeds"] < 0] == 0)


def test_equal_values_are_seeds_as_well_but_not_of_both() -> None:
    ties = torch.tensor([0.0] * 6 + [1.0, 1.0, 2.0, 2.0]).view(2, 5)
    assert select_seeds(ties, 0.95, 0.3).flatten().tolist() == [-1] * 6 + [0, 0, 1, 1]
    assert select_seeds(torch.tensor([[0.0] * 99 + [1.0]]), 0.95, 0.3).flatten().tolist() == [
        -1
    ] * 99 + [1], "most of the map cut off at zero"
    assert (select_seeds(torch.full((4, 4), 0.7), 0.95, 0.3) == -1).all()


def test_other_quantiles(model: sl.Model) -> None:
    seeds = sl.segment(model, picture(DISC), label=0, foreground=0.9, background=0.5).values[
        "seeds"
    ]
    assert float((seeds > 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((seeds < 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_opencv_itself_finds_the_same(model: sl.Model) -> None:
    image = picture(DISC)
    values = sl.segment(model, image, label=0).values
    mask = np.select(
        [values["seeds"][0] > 0, values["seeds"][0] < 0], [cv2.GC_FGD, cv2.GC_BGD], cv2.GC_PR_BGD
    ).astype(np.uint8)
    pixels = np.round(image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    cv2.grabCut(
        pixels, mask, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK
    )
    assert overlap(values["mask"][0], torch.from_numpy(mask % 2 == 1)) > 0.97


def test_keeps_the_largest_piece_or_all() -> None:
    large, small = distance(14, 14) < 9, distance(36, 36) < 6
    net = weighing(
        torch.exp(-(distance(14, 14) / 9).square()) + torch.exp(-(distance(36, 36) / 9).square())
    )
    one, both = (
        sl.segment(net, picture(large, small), label=0, whole=whole).values["mask"][0]
        for whole in (False, True)
    )
    assert overlap(one, large) > 0.95
    assert overlap(both, large | small) > 0.95


def test_a_batch_is_its_images_one_by_one(model: sl.Model) -> None:
    images = torch.cat([picture(DISC), picture(distance(20, 20) < 8), picture(DISC, noise=0.2)])
    together = sl.segment(model, images, label=0).values
    for i in range(3):
        alone = sl.segment(model, images[i : i + 1], label=0).values
        assert all(
            torch.equal(together[key][i], alone[key][0])
            for key in ("mask", "seeds", "map", "share", "label")
        )


def test_a_flat_map_has_no_object_and_the_caption_says_so(model: sl.Model) -> None:
    result = sl.segment(model, picture(DISC), label="flat")
    assert not result.values["mask"].any()
    assert result.values["share"].tolist() == [0]
    assert "no pixel is a foreground seed and the mask is empty" in result.captions["segment"]
    assert result.panels["segment"].isfinite().all()
    assert "empty" not in sl.segment(model, picture(DISC), label="disc").captions["segment"]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_image_does_not_crash(model: sl.Model, value: float) -> None:
    result = sl.segment(model, torch.full((1, 3, HEIGHT, WIDTH), value), label=0)
    assert result.panels["segment"].isfinite().all()
    assert result.values["mask"].shape == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize("side", [4, 6, 9])
def test_a_few_pixels_do_not_crash(side: int) -> None:
    net = sl.load(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        size=side,
    )
    image = torch.rand(2, 3, side, side + 3, generator=torch.Generator().manual_seed(0))
    for smooth in (0.0, 0.01, 0.2):
        assert sl.segment(net, image, smooth=smooth).values["mask"].shape == (2, side, side + 3)


def test_dead_weights_are_a_flat_map() -> None:
    assert (
        "mask is empty"
        in sl.segment(weighing(torch.zeros(HEIGHT, WIDTH)), picture(DISC), label=0).captions[
            "segment"
        ]
    )


def test_opencvs_random_numbers_neither_matter_nor_move(model: sl.Model) -> None:
    image, masks, drawn = picture(DISC, noise=0.25), [], []
    for seed in (1, 2, 3):
        cv2.setRNGSeed(seed)
        masks.append(sl.segment(model, image, label=0).values["mask"])
        after = cv2.randu(np.zeros(4), 0, 1).tolist()
        cv2.setRNGSeed(seed)
        assert cv2.randu(np.zeros(4), 0, 1).tolist() == after
        drawn.append(after)
    assert drawn[0] != drawn[1]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_seeds_from_other_maps(tiny: sl.Model, photo: Tensor) -> None:
    cam = sl.segment(tiny, photo, source="gradcam", label="bee", smooth=0).values
    assert torch.equal(cam["map"], sl.gradcam(tiny, photo, label="bee").values["map"])
    soft = sl.segment(tiny, photo, source="smoothgrad", label="bee", smooth=0).values
    assert torch.equal(
        soft["map"], sl.saliency(tiny, photo, label="bee", kind="smoothgrad").values["saliency"]
    )
    assert cam["label"].tolist() == soft["label"].tolist() == [1]


def test_the_object_is_cut_out_over_squares(model: sl.Model) -> None:
    result = sl.segment(model, picture(DISC), label=0)
    cutout, mask = result.panels["segment"][..., -WIDTH:], result.values["mask"][0]
    assert torch.equal(cutout[:, :, mask], picture(DISC)[:, :, mask])
    assert cutout[:, :, ~mask].min() > 0.89
    outlined = result.panels["segment"][..., WIDTH + 6 : 2 * WIDTH + 6]
    changed = (outlined != picture(DISC)).any(1)[0]
    assert changed.any()
    assert not changed[distance(22, 26) < 10].any()
    assert not changed[distance(22, 26) > 17].any()
