"""Network Dissection against a literal reading of the paper, and a unit that is planted to fire on one colour."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.data.scan.run import scan
from sightline.data.store.reader import Scan
from sightline.methods.units.dissection import upsample_unit_maps
from sightline.models.tracing.receptive_field import receptive_field

SIDE, COUNT = 32, 6


def discs(seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """A gray picture with red and blue squares, and where they are, 2×side×side."""
    generator = torch.Generator().manual_seed(seed)
    picture, regions = (
        0.4 + 0.05 * torch.rand(3, side, side, generator=generator),
        torch.zeros(2, side, side, dtype=torch.bool),
    )
    for number, color in enumerate(((1.0, 0, 0), (0, 0, 1.0))):
        row, column = torch.randint(0, side - 6, (2,), generator=generator).tolist()
        regions[1 - number, row : row + 6, column : column + 6] = False
        regions[number, row : row + 6, column : column + 6] = True
        picture[:, row : row + 6, column : column + 6] = torch.tensor(color)[:, None, None]
    return picture[None], regions


def written(root: Path) -> None:
    """Pictures in photos/ and masks in masks/red and masks/blue."""
    for number in range(COUNT):
        picture, regions = discs(number)
        sl.write(picture, root / "photos" / f"p{number}.png")
        for name, region in zip(("red", "blue"), regions, strict=True):
            sl.write(region.float().expand(1, 3, -1, -1), root / "masks" / name / f"p{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("photos", "masks/red", "masks/blue"):
        (tmp_path / name).mkdir(parents=True)
    written(tmp_path)
    return tmp_path


def planted() -> sl.Model:
    """A convolution whose unit 0 is positive on red alone, and unit 1 on blue alone, at every pixel."""
    convolution = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        convolution.weight[:, :, 0, 0] = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [0, 1, 0]])
        convolution.bias[:] = 0
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    return sl.load(network, mean=(0.0,) * 3, std=(1.0,) * 3, labels=LABELS[:3], size=SIDE)


def test_a_planted_detector_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each colour covers up to 36 of 1,024 pixels: the share above the threshold is set such that all of it fires.
    monkeypatch.setattr("sightline.methods.units.dissection.ABOVE_THRESHOLD_SHARE", 0.05)
    result = sl.labels(
        planted(),
        folder=root / "photos",
        store=root / "a.scan",
        layer="0",
        masks=root / "masks",
        units=2,
        k=3,
    )
    iou, names = result.values["iou"], result.values["concepts"]
    assert names == ["blue", "red"]
    assert iou[0, 1] > 0.6
    assert iou[1, 0] > 0.6
    assert iou[0, 0] < 0.1
    assert result.values["detectors"] == {"blue": 1, "red": 1}
    assert "2 of 3, by concept" in result.captions["detectors"]


def test_it_is_the_paper_to_the_letter(root: Path, tiny: sl.Model) -> None:
    kept = scan(tiny, root / "photos", store=root / "b.scan")
    result = sl.labels(
        tiny, store=kept.path, layer="conv2", masks=root / "masks", units=1, k=1
    ).values
    with torch.no_grad():
        maps = torch.cat([tiny.features(kept.image(id), "conv2")["conv2"] for id in range(COUNT)])
    for unit in range(0, maps.shape[1], 3):
        values = sorted(maps[:, unit].flatten().tolist(), reverse=True)
        threshold = values[int(0.005 * len(values))]
        assert float(result["threshold"][unit]) == pytest.approx(threshold, abs=1e-6)
        for number, concept in enumerate(("blue", "red")):
            shared = either = 0
            for id in range(COUNT):
                fires = upsample_unit_maps(tiny, "conv2", maps[id], kept.image(id))[unit] > float(
                    result["threshold"][unit]
                )
                mask = sl.read(root / "masks" / concept / f"p{id}.png")[0, 0] > 0
                shared += int((fires & mask).sum())
                either += int((fires | mask).sum())
            assert float(result["iou"][unit, number]) == pytest.approx(shared / either, abs=1e-6)


def test_maps_are_linear_between_the_middles_of_what_places_see(
    tiny: sl.Model, photo: Tensor
) -> None:
    with torch.no_grad():
        maps = tiny.features(photo, "conv2")["conv2"][0]
    large, field = (
        upsample_unit_maps(tiny, "conv2", maps, photo),
        receptive_field(tiny, "conv2", 32, 32),
    )
    windows = [field.window(place, place) for place in range(maps.shape[1])]
    middles = [(top + bottom - 1) / 2 for top, _, bottom, _ in windows]
    for y, x in ((0, 0), (3, 17), (16, 9), (21, 30), (31, 31)):
        weights = torch.zeros(2, len(middles))
        for axis, pixel in enumerate((y, x)):
            inside = min(max(pixel, middles[0]), middles[-1])
            before = max(i for i, middle in enumerate(middles[:-1]) if middle <= inside)
            share = (inside - middles[before]) / (middles[before + 1] - middles[before])
            weights[axis, before], weights[axis, before + 1] = 1 - share, share
        assert torch.allclose(large[:, y, x], torch.einsum("uij,i,j->u", maps, *weights), atol=1e-4)


def test_what_is_refused_and_what_is_noted(root: Path, tiny: sl.Model) -> None:
    kept = scan(tiny, root / "photos", store=root / "c.scan")
    sl.write(smooth(seed=1, side=20), root / "masks" / "red" / "p0.png")
    sl.write(smooth(seed=1), root / "masks" / "red" / "stranger.png")
    values = sl.labels(
        tiny, store=kept.path, layer="conv2", masks=root / "masks", units=1, k=1
    ).values
    assert values["unused"] == [
        "red/stranger.png: no image of that name",
        "red/p0.png: it is 20×20, the image 32×32",
    ]
    (root / "none").mkdir()
    for masks, words in (
        (root / "gone", "there is no such folder"),
        (root / "none", "no CONCEPT/NAME.png for any image NAME of the 6"),
    ):
        with pytest.raises(sl.SightlineError, match=words):
            sl.labels(tiny, store=kept.path, layer="conv2", masks=masks)


def test_a_layer_without_places(root: Path, tiny: sl.Model) -> None:
    kept: Scan = scan(tiny, root / "photos", store=root / "d.scan", layers=("logits",))
    with pytest.raises(sl.SightlineError, match="has no places that masks could be laid over"):
        sl.labels(tiny, store=kept.path, layer="logits", masks=root / "masks")
