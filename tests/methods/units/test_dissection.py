"""Network Dissection against a literal reading of the paper, and with planted detectors."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.data.store.reader import Scan
from sightline.methods.units import dissection
from sightline.methods.units.dissection import (
    ConceptMasks,
    Dissection,
    outline_region,
    upsample_unit_maps,
)
from sightline.models.tracing.receptive_field import receptive_field

SIDE = 32
COUNT = 6


def make_scene(seed: int) -> tuple[Tensor, Tensor]:
    """A gray image 1×3×32×32 with a red and a blue rectangle, and where each is, 2×32×32."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.4 + 0.05 * torch.rand(3, SIDE, SIDE, generator=generator)
    regions = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for number, color in enumerate(((1.0, 0, 0), (0, 0, 1.0))):
        row, column = torch.randint(0, SIDE - 9, (2,), generator=generator).tolist()
        rows, columns = slice(row, row + 4), slice(column, column + 9)
        regions[1 - number, rows, columns] = False  # the second covers the first
        regions[number, rows, columns] = True
        image[:, rows, columns] = torch.tensor(color)[:, None, None]
    return image[None], regions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images in photos/, and masks in masks/red and masks/blue."""
    for name in ("photos", "masks/red", "masks/blue"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(COUNT):
        image, regions = make_scene(number)
        sl.write(image, tmp_path / "photos" / f"p{number}.png")
        for name, region in zip(("red", "blue"), regions, strict=True):
            mask = region.float().expand(1, 3, -1, -1)
            sl.write(mask, tmp_path / "masks" / name / f"p{number}.png")
    return tmp_path


def make_color_model() -> sl.Model:
    """A model whose unit 0 is positive on red alone, and unit 1 on blue alone, at every pixel."""
    convolution = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        convolution.weight[:, :, 0, 0] = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [0, 1, 0]])
        convolution.bias[:] = 0
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    return sl.load(network, mean=(0.0,) * 3, std=(1.0,) * 3, labels=LABELS[:3], size=SIDE)


def test_planted_detectors_are_recognised(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each colour covers up to 36 of 1,024 pixels; with this share, all of a colour fires.
    monkeypatch.setattr(dissection, "ABOVE_THRESHOLD_SHARE", 0.05)
    result = sl.labels(
        make_color_model(),
        folder=root / "photos",
        store=root / "a.scan",
        layer="0",
        masks=root / "masks",
        max_units=2,
        k=3,
    )
    iou = result.values["iou"]
    assert result.values["concepts"] == ["blue", "red"]
    assert iou[0, 1] > 0.6
    assert iou[1, 0] > 0.6
    assert iou[0, 0] < 0.1
    assert result.values["detectors"] == {"blue": 1, "red": 1}
    assert "2 of 3, by concept" in result.captions["detectors"]


@pytest.mark.parametrize("batch_size", [16, 4])
def test_it_is_the_paper_to_the_letter(
    root: Path, tiny: sl.Model, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dissection, "DISSECTION_BATCH_SIZE", batch_size)
    scan = sl.scan(tiny, root / "photos", store=root / "b.scan")
    values = sl.labels(
        tiny, store=scan.path, layer="conv2", masks=root / "masks", max_units=1, k=1
    ).values
    with torch.no_grad():
        maps = torch.cat([tiny.features(scan.image(i), "conv2")["conv2"] for i in range(COUNT)])
    for unit in range(0, maps.shape[1], 3):
        responses = sorted(maps[:, unit].flatten().tolist(), reverse=True)
        threshold = float(values["threshold"][unit])
        assert threshold == pytest.approx(responses[int(0.005 * len(responses))], abs=1e-6)
        for number, concept in enumerate(("blue", "red")):
            intersection = 0
            union = 0
            for image_id in range(COUNT):
                upsampled = upsample_unit_maps(tiny, "conv2", maps[image_id], scan.image(image_id))
                fires = upsampled[unit] > threshold
                mask = sl.read(root / "masks" / concept / f"p{image_id}.png")[0, 0] > 0
                intersection += int((fires & mask).sum())
                union += int((fires | mask).sum())
            iou = float(values["iou"][unit, number])
            assert iou == pytest.approx(intersection / union, abs=1e-6)


def test_a_mask_follows_its_image_into_the_square(tiny: sl.Model, tmp_path: Path) -> None:
    """The network sees the middle of an image of 40×64 pixels; here the image is its own mask."""
    mask = torch.zeros(1, 3, 40, 64)
    mask[:, :, 5:15, 17:40] = 1
    for folder in (tmp_path / "photos", tmp_path / "masks" / "spot"):
        folder.mkdir(parents=True)
        sl.write(mask, folder / "a.png")
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    masks = ConceptMasks.from_folder(scan, tmp_path / "masks")
    region = masks.load_concept_regions(scan, 0)[0]
    assert 80 < region.sum() < 200
    assert torch.equal(region, scan.image(0)[0, 0] > 0.5)


def test_maps_are_linear_between_the_centres_of_what_positions_see(tiny: sl.Model) -> None:
    image = smooth(side=40)[:, :, :32]
    with torch.no_grad():
        maps = tiny.features(image, "conv2")["conv2"][0]
    assert maps.shape[1:] == (16, 20)
    upsampled = upsample_unit_maps(tiny, "conv2", maps, image)
    field = receptive_field(tiny, "conv2", 32, 40)
    centers: list[list[float]] = []
    for axis, count in enumerate(maps.shape[1:]):
        windows = [field.window(position, position) for position in range(count)]
        centers.append([(window[axis] + window[axis + 2] - 1) / 2 for window in windows])

    for y, x in ((0, 0), (3, 17), (16, 9), (21, 35), (31, 39)):
        weights: list[Tensor] = []
        for pixel, axis_centers in zip((y, x), centers, strict=True):
            inside = min(max(pixel, axis_centers[0]), axis_centers[-1])
            lower = max(i for i, center in enumerate(axis_centers[:-1]) if center <= inside)
            distance = axis_centers[lower + 1] - axis_centers[lower]
            share = (inside - axis_centers[lower]) / distance
            axis_weights = torch.zeros(len(axis_centers))
            axis_weights[lower] = 1 - share
            axis_weights[lower + 1] = share
            weights.append(axis_weights)
        expected = torch.einsum("uij,i,j->u", maps, *weights)
        assert torch.allclose(upsampled[:, y, x], expected, atol=1e-4)


def test_a_detector_has_its_best_concept_above_the_limit() -> None:
    iou = torch.tensor([[0.04, 0.01], [0.05, 0.06], [0.0401, 0.0], [0.2, 0.3]])
    result = Dissection(["ant", "bee"], iou, torch.zeros(4), torch.zeros(4, 1), 1, [])
    # An IoU of 0.04 is not above 0.04.
    assert result.count_detectors() == {"ant": 1, "bee": 2}


def test_the_outline_lies_around_the_region() -> None:
    image = torch.full((3, 20, 30), 0.25)
    region = torch.zeros(20, 30, dtype=torch.bool)
    region[5:9, 10:13] = True
    outlined = outline_region(image, region)
    is_yellow = (outlined != image).any(0)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[4:10, 9:14] = True
    assert torch.equal(is_yellow, expected & ~region)
    assert outlined[:, 4, 9].tolist() == pytest.approx([1.0, 0.85, 0.0])


def test_units_are_bright_where_they_fire(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dissection, "ABOVE_THRESHOLD_SHARE", 0.05)
    drawn_rows: list[dissection.FigureRow] = []
    compose = dissection.compose_figure_rows

    def record_rows(rows: list[dissection.FigureRow]) -> Tensor:
        drawn_rows.extend(rows)
        return compose(rows)

    monkeypatch.setattr(dissection, "compose_figure_rows", record_rows)
    model = make_color_model()
    scan = sl.scan(model, root / "photos", store=root / "c.scan", layers=("0",))
    masks = ConceptMasks.from_folder(scan, root / "masks")
    result = dissection.dissect_layer(model, scan, "0", masks)
    dissection.render_concept_units(
        model, scan, "0", masks, result, unit_count=1, images_per_unit=2
    )
    (row,) = drawn_rows
    unit = int(result.iou.max(1).values.argmax())
    assert row.title.startswith(f"unit {unit}: {'blue' if unit else 'red'}, IoU 0.")
    for tile, image_id in zip(row.pictures, result.strongest_ids[unit, :2].tolist(), strict=True):
        image = scan.image(image_id)
        # The convolution is 1×1, so its maps need no upsampling.
        response = model.features(image, "0")["0"][0, unit]
        fires = response > result.thresholds[unit]
        outline = (tile[0] == torch.tensor([1, 0.85, 0])[:, None, None]).all(0)
        assert torch.equal(tile[0][:, fires & ~outline], image[0][:, fires & ~outline])
        outside = ~fires & ~outline
        assert torch.allclose(tile[0][:, outside], 0.3 * image[0][:, outside])


def test_unusable_masks_are_noted_and_bad_folders_refused(root: Path, tiny: sl.Model) -> None:
    scan = sl.scan(tiny, root / "photos", store=root / "d.scan")
    sl.write(smooth(seed=1, side=20)[:, :, :18], root / "masks" / "red" / "p0.png")
    sl.write(smooth(seed=1), root / "masks" / "red" / "stranger.png")
    values = sl.labels(
        tiny, store=scan.path, layer="conv2", masks=root / "masks", max_units=1, k=1
    ).values
    assert values["unused"] == [
        "red/stranger.png: no image of that name",
        "red/p0.png: it is 18×20, the image 32×32",
    ]
    (root / "none").mkdir()
    for folder, message in (
        (root / "gone", "there is no such folder"),
        (root / "none", "no CONCEPT/NAME.png for any image NAME of the 6"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            sl.labels(tiny, store=scan.path, layer="conv2", masks=folder)


def test_a_mask_of_two_images_is_refused(root: Path, tiny: sl.Model) -> None:
    (root / "photos" / "more").mkdir()
    sl.write(smooth(), root / "photos" / "more" / "p1.png")
    scan = sl.scan(tiny, root / "photos", store=root / "e.scan")
    message = "blue/p1.png is the mask of 2 images named p1; names must differ"
    with pytest.raises(sl.SightlineError, match=message):
        ConceptMasks.from_folder(scan, root / "masks")


def test_a_layer_without_positions(root: Path, tiny: sl.Model) -> None:
    scan: Scan = sl.scan(tiny, root / "photos", store=root / "f.scan", layers=("logits",))
    message = "logits has no positions that masks could be laid over; choose a convolutional layer"
    with pytest.raises(sl.SightlineError, match=message):
        sl.labels(tiny, store=scan.path, layer="logits", masks=root / "masks")
