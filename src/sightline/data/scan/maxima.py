"""The largest value of every unit of every layer, taken inside the forward pass.

The feature maps are reduced while they are still in the cache, and only the maxima leave the pass.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.store.description import ResponseKind
from sightline.data.store.interface import MAX_RESPONSE, round_responses
from sightline.models.layers.capture import Capture, find_first_tensor
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model


class PeakCapture(Capture):
    """A forward pass that hands the units' maxima to `statistics` and keeps feature vectors.

    `layers` are the layers whose units are followed, each with its slice of all units; `vectors`
    are those whose features are kept, averaged over the positions of the map. `responses` has a
    float16 matrix of images × all units for each of `response_kinds`, of the last batch.
    """

    def __init__(
        self,
        model: Model,
        layers: Mapping[str, slice],
        vectors: Collection[str],
        statistics: UnitStatistics,
        response_kinds: Sequence[ResponseKind] = (),
    ) -> None:
        calls = {*layers, *vectors} - {"logits"}
        super().__init__(model.network, calls, run_to_end=True)
        self.model = model
        self.layers = layers
        self.vectors = vectors
        self.statistics = statistics
        self.unit_count = max((units.stop for units in layers.values()), default=0)
        self.response_kinds = tuple(response_kinds)
        self.responses: dict[ResponseKind, Tensor] = {}
        self.images = torch.empty(0)  # the batch that is in the network

    def record_tensor(self, name: str, value: object) -> None:
        """Takes what is needed of a layer's output, before a later layer can overwrite it."""
        tensor = find_first_tensor(value)
        if tensor is None or not (name in self.layers or name in self.vectors):
            return
        tensor = tensor.detach()  # of a network that turns gradients on by itself
        maps = reshape_to_unit_grid(tensor, self.images, self.model, name)
        if name in self.layers:
            self._add_maxima(self.layers[name], maps)
        if name in self.vectors:
            vectors = tensor if tensor.ndim == 2 else maps.mean((2, 3))
            self.tensors[name] = vectors.float().cpu().clone()

    def _add_maxima(self, units: slice, maps: Tensor) -> None:
        row_maxima, maxima = compute_maxima(maps)
        if bool(maxima.isnan().any()):
            maps = maps.masked_fill(maps.isnan(), -torch.inf)
            row_maxima, maxima = compute_maxima(maps)
        maxima = maxima.float().cpu()
        locate = partial(locate_maxima, maps, row_maxima)
        self.statistics.add_responses(units, maxima, locate)
        for kind, responses in self.responses.items():
            values = maxima if kind == "max" else maps.float().mean((2, 3)).cpu()
            responses[:, units] = round_responses(values)

    def measure_batch(self, images: Tensor) -> dict[str, Tensor]:
        """Runs a batch N×3×H×W; returns the vectors N×d by layer, and the `logits`."""
        self.tensors = {}
        self.images = images
        self.call_counts.clear()
        # A layer that does not run for this batch leaves the smallest number.
        shape = (len(images), self.unit_count)
        self.responses = {
            kind: torch.full(shape, -MAX_RESPONSE, dtype=torch.float16)
            for kind in self.response_kinds
        }
        # Not in inference mode: a network may need gradients of its own, or keep tensors for later.
        with self.model.lock, torch.no_grad():
            output = self.run_forward_pass(lambda: self.model.run_network(images))
            logits = self.model.read_scores(output, images.shape).detach()
            # No module's output has this name, but it may be one of the layers.
            self.record_tensor("logits", logits)
            return {**self.tensors, "logits": logits.float().cpu()}


def compute_maxima(feature_maps: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of each row, N×h×C, and of each map, N×C, of feature maps N×C×h×w.

    Units stay the innermost axis, as they are in memory, which is eighteen times faster.
    """
    row_maxima = feature_maps.permute(0, 2, 3, 1).amax(2)
    return row_maxima, row_maxima.amax(1)


def locate_maxima(feature_maps: Tensor, row_maxima: Tensor, image: Tensor, unit: Tensor) -> Tensor:
    """The first position (row × width + column) of the maximum, for pairs of image and unit.

    Looks at one row of each map only.
    """
    width = feature_maps.shape[3]
    row = row_maxima[image, :, unit].argmax(1)
    column = feature_maps[image, unit, row].argmax(1)
    return (row * width + column).cpu()
