"""The work of a pass, batch by batch, with files that cannot be read."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import smooth
from PIL import Image
from torch import nn

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.datasets.files import hash_source
from sightline.data.scan.run import describe_scan
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanWorker
from sightline.data.store.interface import ErrorRow, ImageRow
from sightline.errors import SightlineError
from sightline.images.decode.center_crop import fit_center_crop, stack_crops
from sightline.images.decode.pixels import convert_tensor_to_pillow

COUNT = 11


@dataclass
class Photos:
    """Pictures of 40×56 pixels; some positions cannot be read, each for another reason."""

    source: str | None = None
    digest: str = "ab" * 32
    class_names: tuple[str, ...] = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return COUNT

    def get_path(self, position: int) -> str:
        return f"photo {position}"

    def get_label(self, position: int) -> int:
        return position % 4 - 1

    def read_image(self, position: int) -> bytes:
        if position == 1:
            raise FileNotFoundError(2, "No such file or directory")
        if position == 6:
            raise SightlineError("not for reading\nand a second line")
        if position == 7:
            return b"no picture"
        buffer = io.BytesIO()
        pixels = (smooth(COUNT, side=56)[position, :, :40].permute(1, 2, 0) * 255).byte()
        Image.fromarray(pixels.numpy()).save(buffer, "PNG")
        return buffer.getvalue()


def scan_photos(
    model: sl.Model, batch_size: int, first: int = 0, next_id: int = 0
) -> tuple[list[tuple[int, int]], list[ImageRow], list[ErrorRow], UnitStatistics]:
    """End and number of images of each segment, all rows, and the statistics."""
    description = describe_scan(
        model, Photos(), ["conv2"], ["fc:in", "conv1"], 3, size=(32, 32), batch_size=batch_size
    )
    statistics = UnitStatistics.from_description(description)
    worker = ScanWorker(model, Photos(), description, statistics)
    segments = list(worker.scan_range(first, COUNT, next_id))
    ends = [(segment.done, segment.readable_count) for segment in segments]
    images = [row for segment in segments for row in segment.image_rows]
    errors = [row for segment in segments for row in segment.error_rows]
    return ends, images, errors, statistics


def test_rows_are_those_of_the_network(wide: sl.Model) -> None:
    ends, images, errors, _ = scan_photos(wide, batch_size=4)
    assert ends == [(4, 3), (8, 2), (11, 3)]
    assert [(error.position, error.path) for error in errors] == [
        (1, "photo 1"),
        (6, "photo 6"),
        (7, "photo 7"),
    ]
    assert errors[0].reason == "No such file or directory"
    assert errors[1].reason == "not for reading\\nand a second line"
    readable = [position for position in range(COUNT) if position not in (1, 6, 7)]
    assert [row.position for row in images] == readable
    assert [row.id for row in images] == list(range(len(readable)))
    assert [row.label for row in images] == [position % 4 - 1 for position in readable]
    assert {(row.height, row.width) for row in images} == {(40, 56)}
    assert [row.path for row in images] == [f"photo {position}" for position in readable]

    sources = [Photos().read_image(position) for position in readable]
    assert [row.sha256 for row in images] == [hash_source(source) for source in sources]
    squares = stack_crops([fit_center_crop(source, 32, 32) for source in sources])
    with torch.no_grad():
        plain = wide.features(squares, ["fc:in", "conv1", "logits"])
    probabilities = plain["logits"].softmax(1).sort(1, descending=True)
    for number, row in enumerate(images):
        assert row.best_labels.tolist() == probabilities.indices[number, :5].tolist()
        best = torch.tensor(row.best_probabilities)
        torch.testing.assert_close(best, probabilities.values[number, :5])
        torch.testing.assert_close(torch.tensor(row.vectors[0]), plain["fc:in"][number])
        torch.testing.assert_close(
            torch.tensor(row.vectors[1]), plain["conv1"][number].mean((1, 2))
        )
        thumbnail = Image.open(io.BytesIO(row.thumbnail))
        assert thumbnail.format == "JPEG"
        assert thumbnail.size == (32, 32)


class Contrast(nn.Module):
    """Looks at the contrast of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.conv1((image - image.mean()) / image.std()).relu()
        return self.fc(self.conv2(features).relu().mean((2, 3)))


def test_images_that_must_not_share_a_batch_are_scanned_one_by_one() -> None:
    model = sl.load(Contrast(), size=32)
    ends, images, _, _ = scan_photos(model, batch_size=4)
    assert [done for done, _ in ends] == list(range(1, COUNT + 1))
    for row in images:
        crop = fit_center_crop(Photos().read_image(row.position), 32, 32)
        plain = model.features(stack_crops([crop]), ["fc:in", "logits"])
        torch.testing.assert_close(torch.tensor(row.vectors[0]), plain["fc:in"][0])
        best = plain["logits"].softmax(1).amax().detach()
        torch.testing.assert_close(torch.tensor(row.best_probabilities)[0], best)


def test_continues_at_a_position_and_an_id(wide: sl.Model) -> None:
    _, all_images, all_errors, _ = scan_photos(wide, batch_size=4)
    ends, images, errors, _ = scan_photos(wide, batch_size=4, first=8, next_id=5)
    assert ends == [(11, 3)]
    assert [row.id for row in images] == [row.id for row in all_images[5:]]
    assert [row.sha256 for row in images] == [row.sha256 for row in all_images[5:]]
    assert errors == all_errors[3:]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_statistics_do_not_depend_on_the_batches(wide: sl.Model, batch_size: int) -> None:
    _, _, _, expected = scan_photos(wide, batch_size=4)
    _, images, errors, statistics = scan_photos(wide, batch_size=batch_size)
    assert (len(images), len(errors)) == (8, 3)
    torch.testing.assert_close(statistics.top.values, expected.top.values)
    assert torch.equal(statistics.top.ids, expected.top.ids)
    assert torch.equal(statistics.top.peaks, expected.top.peaks)
    assert torch.equal(statistics.classes.ids, expected.classes.ids)
    assert torch.equal(statistics.counts, expected.counts)


# ── images of other bands ──


def make_bands_model(bands: int) -> sl.Model:
    """A network for 24×24 pixels of that many bands, which shows the last three."""
    torch.manual_seed(bands)
    net = nn.Sequential(
        nn.Conv2d(bands, 6, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()
    shown = (bands - 1, max(0, bands - 2), max(0, bands - 3))
    return sl.load(
        net, mean=[0.4] * bands, std=[0.3] * bands, size=24, bands=shown, labels=list("abc")
    )


def write_bands(folder: Path, bands: int, kind: str, count: int = 9) -> list[Path]:
    """Random images of 31×40 pixels below two class folders."""
    paths: list[Path] = []
    generator = np.random.default_rng(bands)
    for number in range(count):
        path = (
            folder / ("even", "odd")[number % 2] / f"{number}.{'tif' if 'tif' in kind else 'npy'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (generator.random((bands, 31, 40)) ** 3 * 65535).astype(np.uint16)
        if path.suffix == ".tif":
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate")
        else:
            np.save(path, values if kind == "npy" else values / 65535)
        paths.append(path)
    return paths


@pytest.mark.parametrize(("bands", "kind"), [(5, "tif"), (2, "tif"), (13, "npy"), (4, "float npy")])
def test_bands_are_scanned_as_they_are_read(tmp_path: Path, bands: int, kind: str) -> None:
    model = make_bands_model(bands)
    paths = write_bands(tmp_path / "photos", bands, kind)
    scan = sl.scan(model, tmp_path / "photos", store=tmp_path / "a.scan", batch=4)
    assert scan.images == len(paths)
    assert not scan.errors
    ordered = sorted(paths)
    images = torch.cat([model.fit(sl.read(path)) for path in ordered])
    expected = model.features(images, ["penultimate"])["penultimate"]
    assert torch.allclose(scan.vectors("penultimate"), expected, atol=1e-5)
    assert torch.allclose(scan.image(4), images[4:5], atol=1e-6)
    shown = model.to_picture(images[4:5])
    assert (scan.thumbnail(4).mean((2, 3)) - shown.mean((2, 3))).abs().max() < 0.05

    image = images[4:5]
    neighbors = sl.neighbors(model, image, store=tmp_path / "a.scan", k=3)
    assert int(neighbors.values["ids"].flatten()[0]) == 4
    sl.neighbors(model, id=2, store=tmp_path / "a.scan", k=3)
    sl.patches(model, store=tmp_path / "a.scan", layer="0", unit=1)
    sl.patches(model, store=tmp_path / "a.scan", layer="2")
    sl.embedding(model, store=tmp_path / "a.scan")
    sl.labels(model, store=tmp_path / "a.scan")


def test_files_of_other_bands_are_one_line_each(tmp_path: Path) -> None:
    model = make_bands_model(5)
    write_bands(tmp_path / "photos", 5, "tif", 3)
    write_bands(tmp_path / "photos" / "six", 6, "tif", 1)
    convert_tensor_to_pillow(smooth(side=30)).save(tmp_path / "photos" / "odd" / "a.png")
    scan = sl.scan(model, tmp_path / "photos", store=tmp_path / "a.scan")
    assert scan.images == 3
    reasons = sorted(reason for _, reason in scan.errors)
    assert reasons == [
        "an image of 3 bands; Sequential takes 5",
        "an image of 6 bands; Sequential takes 5",
    ]
    with pytest.raises(
        SightlineError, match=r"none of the 2 files could be read.* takes 3"
    ) as caught:
        sl.scan(make_bands_model(3), tmp_path / "photos" / "even", store=tmp_path / "b.scan")
    assert "\n" not in str(caught.value)


def test_a_dataset_object_of_bands(tmp_path: Path) -> None:
    model = make_bands_model(7)
    images = torch.rand(6, 7, 24, 24, generator=torch.Generator().manual_seed(5))
    items = [(image, 0) for image in images]
    scan = sl.scan(model, items, store=tmp_path / "a.scan")
    expected = model.features(images, ["penultimate"])["penultimate"]
    assert torch.allclose(scan.vectors("penultimate"), expected, atol=1e-5)
    changed = [(image.flip(0), 0) for image in images]
    with pytest.raises(SightlineError, match=r"scan"):
        sl.scan(model, changed, store=tmp_path / "a.scan")


def test_the_command_line_takes_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_bands(tmp_path, 5, "tif", 2)
    (tmp_path / "bandnet.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
        "    return net, {'mean': [0.4] * 5, 'std': [0.3] * 5, 'size': 24}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["saliency", str(paths[0]), "--model", "bandnet:build", "--quiet"]
    assert main([*command, "--out", "out"]) == 0
    assert (tmp_path / "out" / "saliency.png").exists()
