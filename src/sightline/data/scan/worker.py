"""The work of a pass: images are decoded ahead in threads, and each batch runs through once."""

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from sightline.data.datasets.files import ImageDataset, hash_source
from sightline.data.scan.maxima import PeakCapture
from sightline.data.scan.topk import UnitStatistics
from sightline.data.store.description import ScanDescription
from sightline.data.store.interface import THUMBNAIL_SIZE, ErrorRow, ImageRow
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.square import FittedSquare, encode_thumbnail, fit_square, stack_squares
from sightline.models.model import Model

PREFETCH_BATCHES = 2  # batches decoded while one is in the network


@dataclass(frozen=True)
class DecodedImage:
    """An image that could be read: its dataset position, square, digest and thumbnail."""

    position: int
    square: FittedSquare
    sha256: str
    thumbnail: bytes


DecodedFile = DecodedImage | ErrorRow


class ScanSegment(NamedTuple):
    """What a chunk of the dataset gave: rows for the store, and the position where it ends.

    A cluster's workers have written their images' rows already: then there are `fragments` in
    place of `image_rows`.
    """

    done: int
    readable_count: int
    image_rows: Sequence[ImageRow]
    error_rows: Sequence[ErrorRow]
    fragments: Sequence[str] = ()


class ScanWorker:
    """Runs a dataset through a network and adds the units' responses to `statistics`."""

    def __init__(
        self,
        model: Model,
        dataset: ImageDataset,
        description: ScanDescription,
        statistics: UnitStatistics,
    ) -> None:
        self.dataset = dataset
        self.description = description
        self.statistics = statistics
        self.device = model.device
        self.peak_capture = PeakCapture(
            model, description.unit_slices, description.vector_lengths, statistics
        )

    def scan_range(self, first: int, end: int, next_id: int) -> Generator[ScanSegment, None, None]:
        """Positions `first` to `end` − 1, a batch at a time; `next_id` is the first image's id."""
        for files in self.decode_batches(first, end):
            segment = self.scan_batch(files, next_id)
            next_id += segment.readable_count
            yield segment

    # ── decoding ──

    def decode_batches(self, first: int, end: int) -> Generator[list[DecodedFile], None, None]:
        """The batches in order, decoded in threads a little ahead."""
        batch_size = self.description.batch_size
        waiting: deque[list[Future[DecodedFile]]] = deque()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                for start in range(first, end, batch_size):
                    positions = range(start, min(start + batch_size, end))
                    futures = [pool.submit(self.decode_file, position) for position in positions]
                    waiting.append(futures)
                    if len(waiting) > PREFETCH_BATCHES:
                        yield [future.result() for future in waiting.popleft()]
                while waiting:
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def decode_file(self, position: int) -> DecodedFile:
        """The image at a dataset position, or the reason why it can't be read."""
        network = self.description.network
        try:
            source = self.dataset.read_image(position)
            square = fit_square(source, network.side, network.short_side)
        except SightlineError as error:
            reason = get_first_error_line(error)
            return ErrorRow(position, self.dataset.get_path(position), reason)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or get_first_error_line(error)
            return ErrorRow(position, self.dataset.get_path(position), reason)
        thumbnail = encode_thumbnail(square, min(THUMBNAIL_SIZE, network.side))
        return DecodedImage(position, square, hash_source(source), thumbnail)

    # ── the network ──

    def scan_batch(self, files: Sequence[DecodedFile], first_id: int) -> ScanSegment:
        """Runs one batch; unreadable files are left out of it."""
        images = [file for file in files if isinstance(file, DecodedImage)]
        errors = [file for file in files if isinstance(file, ErrorRow)]
        return ScanSegment(
            done=files[-1].position + 1,
            readable_count=len(images),
            image_rows=self.measure_images(images, first_id) if images else [],
            error_rows=errors,
        )

    def measure_images(self, images: Sequence[DecodedImage], first_id: int) -> list[ImageRow]:
        """The rows of a batch's images; their units' responses go to the statistics."""
        ids = torch.arange(first_id, first_id + len(images))
        positions = [image.position for image in images]
        labels = [self.dataset.get_label(position) for position in positions]
        self.statistics.begin_batch(ids, torch.tensor(labels), torch.tensor(positions))

        squares = stack_squares([image.square for image in images])
        outputs = self.peak_capture.measure_batch(squares.to(self.device))
        probabilities = outputs["logits"].softmax(1)
        best = probabilities.topk(min(5, probabilities.shape[1]))

        rows: list[ImageRow] = []
        for row, image in enumerate(images):
            vectors = [outputs[layer][row].numpy() for layer in self.description.vector_lengths]
            rows.append(
                ImageRow(
                    id=first_id + row,
                    position=image.position,
                    path=self.dataset.get_path(image.position),
                    sha256=image.sha256,
                    label=labels[row],
                    height=image.square.height,
                    width=image.square.width,
                    best_labels=best.indices[row].numpy(),
                    best_probabilities=best.values[row].numpy(),
                    thumbnail=image.thumbnail,
                    vectors=tuple(vectors),
                )
            )
        return rows
