"""The work of a pass, batch by batch, with files that cannot be read."""

import io
from dataclasses import dataclass

import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.data.datasets.files import hash_source
from sightline.data.scan.run import describe_scan
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanWorker
from sightline.data.store.interface import ErrorRow, ImageRow
from sightline.errors import SightlineError
from sightline.images.decode.square import fit_square, stack_squares

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
        model, Photos(), ["conv2"], ["fc:in", "conv1"], 3, side=32, batch_size=batch_size
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
    squares = stack_squares([fit_square(source, 32, 32) for source in sources])
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
