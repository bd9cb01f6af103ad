"""The work of a pass: images are decoded ahead in threads, and each batch runs through once."""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.data.datasets.files import ImageDataset, hash_source
from sightline.data.scan.maxima import PeakCapture
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.store.description import ScanDescription
from sightline.data.store.interface import THUMBNAIL_SIZE, ErrorRow, ImageRow
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.center_crop import (
    CenterCrop,
    encode_thumbnail,
    fit_center_crop,
    stack_crops,
)
from sightline.models.model import Model

PREFETCH_BATCHES = 2  # batches decoded while one is in the network


@dataclass(frozen=True)
class DecodedImage:
    """An image that could be read: its dataset position, crop, digest and thumbnail."""

    position: int
    crop: CenterCrop
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
        self.model = model
        self.device = model.device
        self.peak_capture = PeakCapture(
            model,
            description.unit_slices,
            description.vector_lengths,
            statistics,
            description.response_kinds,
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
            crop = fit_center_crop(source, network.size, network.short_side)
            self._check_bands(crop)
            sha256 = hash_source(source)
        except SightlineError as error:
            reason = get_first_error_line(error)
            return ErrorRow(position, self.dataset.get_path(position), reason)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or get_first_error_line(error)
            return ErrorRow(position, self.dataset.get_path(position), reason)
        thumbnail = encode_thumbnail(crop, THUMBNAIL_SIZE, self.model.bands)
        return DecodedImage(position, crop, sha256, thumbnail)

    def _check_bands(self, crop: CenterCrop) -> None:
        """Raises SightlineError for an image of other bands than the network takes."""
        bands = crop.pixels.shape[2]
        if bands != self.model.channels:
            raise SightlineError(
                f"an image of {bands} bands; {self.model.name} takes {self.model.channels}"
            )

    # ── the network ──

    def scan_batch(self, files: Sequence[DecodedFile], first_id: int) -> ScanSegment:
        """Runs one batch; unreadable files are left out of it."""
        images = [file for file in files if isinstance(file, DecodedImage)]
        errors = [file for file in files if isinstance(file, ErrorRow)]
        image_rows, measuring_errors = self.measure_images(images, first_id)
        return ScanSegment(
            done=files[-1].position + 1,
            readable_count=len(image_rows),
            image_rows=image_rows,
            error_rows=[*errors, *measuring_errors],
        )

    def measure_images(
        self, images: Sequence[DecodedImage], first_id: int
    ) -> tuple[list[ImageRow], list[ErrorRow]]:
        """The rows of a batch's images; their units' responses go to the statistics.

        An image for which the network gives NaN or infinity is an error. The others then run once
        more without it, since their ids depend on it.
        """
        labels = {image.position: self.dataset.get_label(image.position) for image in images}
        errors: list[ErrorRow] = []
        while images:
            outputs = self._run_batch(images, labels, first_id)
            reasons = self._find_unusable_images(outputs)
            if not reasons:
                return self._make_image_rows(images, labels, outputs, first_id), errors
            self.statistics.undo_batch()
            for row, reason in reasons.items():
                position = images[row].position
                errors.append(ErrorRow(position, self.dataset.get_path(position), reason))
            images = [image for row, image in enumerate(images) if row not in reasons]
        return [], errors

    def _run_batch(
        self, images: Sequence[DecodedImage], labels: Mapping[int, int], first_id: int
    ) -> dict[str, Tensor]:
        """The features by layer, N×d, and the `logits`, N×classes."""
        ids = torch.arange(first_id, first_id + len(images))
        positions = [image.position for image in images]
        batch_labels = [labels[position] for position in positions]
        self.statistics.begin_batch(ids, torch.tensor(batch_labels), torch.tensor(positions))
        batch = stack_crops([image.crop for image in images])
        return self.peak_capture.measure_batch(batch.to(self.device))

    def _find_unusable_images(self, outputs: Mapping[str, Tensor]) -> dict[int, str]:
        """The rows of a batch that no store can hold, with the reason of each."""
        reasons: dict[int, str] = {}
        for layer in self.description.vector_lengths:
            for row in list_unusable_rows(outputs[layer]):
                reasons[row] = f"the network's features of {layer} are not finite for this image"
        for row in list_unusable_rows(self.model.to_probabilities(outputs["logits"])):
            reasons.setdefault(row, "the network's output is not finite for this image")
        return reasons

    def _make_image_rows(
        self,
        images: Sequence[DecodedImage],
        labels: Mapping[int, int],
        outputs: Mapping[str, Tensor],
        first_id: int,
    ) -> list[ImageRow]:
        probabilities = self.model.to_probabilities(outputs["logits"])
        best = probabilities.topk(min(5, probabilities.shape[1]))
        responses = [
            self.peak_capture.responses[kind].numpy() for kind in self.description.response_kinds
        ]
        rows: list[ImageRow] = []
        for row, image in enumerate(images):
            vectors = [outputs[layer][row].numpy() for layer in self.description.vector_lengths]
            rows.append(
                ImageRow(
                    id=first_id + row,
                    position=image.position,
                    path=self.dataset.get_path(image.position),
                    sha256=image.sha256,
                    label=labels[image.position],
                    height=image.crop.height,
                    width=image.crop.width,
                    best_labels=best.indices[row].numpy(),
                    best_probabilities=best.values[row].numpy(),
                    thumbnail=image.thumbnail,
                    vectors=tuple(vectors),
                    responses=tuple(values[row] for values in responses),
                )
            )
        return rows


def list_unusable_rows(values: Tensor) -> list[int]:
    """The rows of a matrix that hold NaN or infinity."""
    is_usable = values.isfinite().all(1)
    return is_usable.logical_not().nonzero()[:, 0].tolist()
