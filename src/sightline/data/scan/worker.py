"""Images are decoded ahead in threads, a batch goes through the network once, and all that is kept is taken on the way."""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sightline.data.datasets.files import ImageDataset, hash_source
from sightline.data.scan.maxima import PeakCapture
from sightline.data.scan.topk import UnitStatistics
from sightline.data.store.schema import THUMBNAIL_SIZE
from sightline.data.store.writer import RowDicts
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode import FittedSquare, encode_thumbnail, fit_square, stack_squares
from sightline.models.model import Model

PREFETCH_BATCHES = 2  # batches decoded while one is in the network


@dataclass(frozen=True)
class DecodedImage:
    """One file, read: its square, digest and thumbnail; or why not."""

    fitted_image: FittedSquare | None
    sha256: str = ""
    thumbnail: bytes = b""
    reason: str = ""


class ScanPart(NamedTuple):
    """Rows for the store from one stretch of a collection, the position where it ends, and how many of its images could be read;
    their rows, or the fragments in which a worker of a cluster has written them."""

    done: int
    readable_count: int
    image_rows: RowDicts
    error_rows: RowDicts
    fragments: Sequence[str] = ()


class ScanWorker:
    """A network that looks at a collection, with what is kept of its units."""

    def __init__(
        self,
        model: Model,
        dataset: ImageDataset,
        facts: Mapping[str, Any],
        statistics: UnitStatistics,
    ) -> None:
        self.dataset, self.statistics, self.batch_size, self.device = (
            dataset,
            statistics,
            facts["batch"],
            model.device,
        )
        self.side, self.short_side, self.vectors = (
            facts["network"]["side"],
            facts["network"]["short"],
            list(facts["vectors"]),
        )
        slices: dict[str, slice] = {}
        units = 0
        for name, layer in facts["layers"].items():
            slices[name] = slice(units, units + layer["units"])
            units += layer["units"]
        self.peak_capture = PeakCapture(model, slices, facts["vectors"], statistics)

    def scan_range(self, first: int, end: int, next_id: int) -> Generator[ScanPart, None, None]:
        """Batch by batch from one position to another; `id` is the first image's number."""
        for start, batch in self.decode_batches(first, end):
            part = self.scan_batch(start, batch, next_id)
            next_id += part.readable_count
            yield part

    def decode_batches(
        self, first: int, end: int
    ) -> Generator[tuple[int, list[DecodedImage]], None, None]:
        """Batches by their first position, decoded in threads a little ahead."""
        starts = iter(range(first, end, self.batch_size))
        waiting: deque[tuple[int, list[Future[DecodedImage]]]] = deque()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                while True:
                    while (
                        len(waiting) <= PREFETCH_BATCHES
                        and (start := next(starts, None)) is not None
                    ):
                        ends = min(start + self.batch_size, end)
                        waiting.append(
                            (
                                start,
                                [
                                    pool.submit(self.decode_image, position)
                                    for position in range(start, ends)
                                ],
                            )
                        )
                    if not waiting:
                        return
                    start, futures = waiting.popleft()
                    yield start, [future.result() for future in futures]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def decode_image(self, position: int) -> DecodedImage:
        """One file, decoded, or the reason why not."""
        try:
            source = self.dataset.read_image(position)
            view = fit_square(source, self.side, self.short_side)
        except SightlineError as error:
            return DecodedImage(None, reason=get_first_error_line(error))
        except (OSError, ValueError) as error:
            return DecodedImage(
                None, reason=getattr(error, "strerror", None) or get_first_error_line(error)
            )
        return DecodedImage(
            view, hash_source(source), encode_thumbnail(view, min(THUMBNAIL_SIZE, self.side))
        )

    def scan_batch(self, start: int, batch: list[DecodedImage], first_id: int) -> ScanPart:
        """One batch through the network."""
        errors = [
            {"position": position, "path": self.dataset.get_path(position), "reason": read.reason}
            for position, read in enumerate(batch, start)
            if read.fitted_image is None
        ]
        good = [
            (position, read, read.fitted_image)
            for position, read in enumerate(batch, start)
            if read.fitted_image is not None
        ]
        return ScanPart(
            start + len(batch),
            len(good),
            self.measure_images(good, first_id) if good else [],
            errors,
        )

    def measure_images(
        self, decoded: list[tuple[int, DecodedImage, FittedSquare]], first_id: int
    ) -> RowDicts:
        """The rows of a batch's readable images."""
        places = [position for position, _, _ in decoded]
        labels = torch.tensor([self.dataset.get_label(position) for position in places])
        self.statistics.begin_batch(
            torch.arange(first_id, first_id + len(decoded)), labels, torch.tensor(places)
        )
        outputs = self.peak_capture.measure_batch(
            stack_squares([view for _, _, view in decoded]).to(self.device)
        )
        best = outputs["logits"].softmax(1).topk(min(5, outputs["logits"].shape[1]))
        return [
            {
                "id": first_id + row, "position": position, "path": self.dataset.get_path(position), "sha256": read.sha256,
                "class": int(labels[row]), "height": view.height, "width": view.width, "thumbnail": read.thumbnail,
                "labels": best.indices[row].numpy(), "probabilities": best.values[row].numpy(),
                **{f"vector_{number}": outputs[name][row].numpy() for number, name in enumerate(self.vectors)},
            }
            for row, (position, read, view) in enumerate(decoded)
        ]  # fmt: skip
