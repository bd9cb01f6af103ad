"""What is kept of the units while responses stream by: the strongest images, and a sample.

The result does not depend on how the images are divided into batches, nor on their order.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.data.scan.journal import ChangeJournal
from sightline.data.store.description import ScanDescription

# Given rows of a batch and units of a layer, the flat positions (row × width + column) of the
# maxima of their feature maps.
LocatePeaks = Callable[[Tensor, Tensor], Tensor]


class TopK(NamedTuple):
    """The k strongest images of each unit, U×k each: values falling, ties by rising id.

    `peaks` are the flat positions (row × width + column) of the maxima in the units' maps. Empty
    entries have value −inf and id −1.
    """

    values: Tensor
    ids: Tensor
    peaks: Tensor

    @classmethod
    def make_empty(cls, *shape: int) -> "TopK":
        """No image seen yet. Ids reach 2³¹ − 1."""
        return cls(
            values=torch.full(shape, -torch.inf),
            ids=torch.full(shape, -1, dtype=torch.int32),
            peaks=torch.full(shape, -1, dtype=torch.int32),
        )

    def select_part(self, index: slice | int) -> "TopK":
        """A view of some units, or of one class."""
        return TopK(self.values[index], self.ids[index], self.peaks[index])

    def add_batch(
        self,
        values: Tensor,
        ids: Tensor,
        locate: LocatePeaks,
        journal: ChangeJournal | None = None,
    ) -> None:
        """Takes in the responses N×U of the images `ids`, in place. NaN and −inf never enter."""
        journal = journal or ChangeJournal()
        values = values.T
        ids = ids.to(self.ids)
        last_values = self.values[:, -1:]
        last_ids = self.ids[:, -1:]
        enters = (values > last_values) | ((values == last_values) & (ids < last_ids))
        units = enters.any(1).nonzero()[:, 0]  # most batches change few units
        if not len(units):
            return
        enters = enters[units]
        k = self.values.shape[1]

        batch_values = values[units].where(enters, -torch.inf)
        batch_ids = ids.expand(len(units), -1).where(enters, -1)
        candidate_values = torch.cat([self.values[units], batch_values], 1)
        candidate_ids = torch.cat([self.ids[units], batch_ids], 1)
        order = rank_by_value(candidate_values, candidate_ids)[:, :k]
        top_values = candidate_values.gather(1, order)
        top_ids = candidate_ids.gather(1, order)

        # Positions are computed only for the entries that the batch brought.
        unknown_peaks = self.peaks.new_full(enters.shape, -1)
        top_peaks = torch.cat([self.peaks[units], unknown_peaks], 1).gather(1, order)
        is_new = (order >= k) & (top_values > -torch.inf)
        if bool(is_new.any()):
            unit_rows, _ = is_new.nonzero(as_tuple=True)
            top_peaks[is_new] = locate(order[is_new] - k, units[unit_rows]).to(top_peaks)

        journal.assign(self.values, units, top_values)
        journal.assign(self.ids, units, top_ids)
        journal.assign(self.peaks, units, top_peaks)

    def merge_from(self, other: "TopK") -> None:
        """Takes in the strongest of other images, in place."""
        k = self.values.shape[1]
        values = torch.cat([self.values, other.values], 1)
        ids = torch.cat([self.ids, other.ids], 1)
        peaks = torch.cat([self.peaks, other.peaks], 1)
        order = rank_by_value(values, ids)[:, :k]
        self.values.copy_(values.gather(1, order))
        self.ids.copy_(ids.gather(1, order))
        self.peaks.copy_(peaks.gather(1, order))


def rank_by_value(values: Tensor, ids: Tensor) -> Tensor:
    """The order of each row by falling value, then rising id."""
    order = ids.argsort(dim=1, stable=True)
    by_value = values.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, by_value)


class HashedSample(NamedTuple):
    """A uniform sample: the images whose dataset positions have the smallest hashes.

    It has S slots, in no order: `ids` and `positions` (in the dataset) are S; `values` and `peaks`
    (as in `TopK`) are S×U. Empty slots have id and position −1.
    """

    ids: Tensor
    positions: Tensor
    values: Tensor
    peaks: Tensor

    @classmethod
    def make_empty(cls, size: int, units: int) -> "HashedSample":
        """No image seen yet."""
        empty = TopK.make_empty(size, units)
        return cls(
            ids=torch.full((size,), -1, dtype=torch.int32),
            positions=torch.full((size,), -1, dtype=torch.int32),
            values=empty.values,
            peaks=empty.peaks,
        )

    def admit_images(
        self, ids: Tensor, positions: Tensor, journal: ChangeJournal | None = None
    ) -> tuple[Tensor, Tensor]:
        """Enters the ids and positions of a batch; returns the rows that enter, and their slots."""
        journal = journal or ChangeJournal()
        size = len(self.ids)
        candidates = torch.cat([self.positions, positions.to(self.positions)]).tolist()

        def rank(index: int) -> tuple[bool, int]:
            position = candidates[index]
            return position < 0, hash_position(position)  # empty slots last

        sampled = set(sorted(range(len(candidates)), key=rank)[:size])
        rows = sorted(index - size for index in sampled if index >= size)
        slots = [index for index in range(size) if index not in sampled][: len(rows)]
        journal.assign(self.ids, slots, ids[rows].to(self.ids))
        journal.assign(self.positions, slots, positions[rows].to(self.ids))
        return torch.tensor(rows, dtype=torch.long), torch.tensor(slots, dtype=torch.long)

    def merge_from(self, other: "HashedSample") -> None:
        """Takes in the sample of other images."""
        filled = (other.positions >= 0).nonzero()[:, 0]
        rows, slots = self.admit_images(other.ids[filled], other.positions[filled])
        self.values[slots] = other.values[filled[rows]]
        self.peaks[slots] = other.peaks[filled[rows]]


def hash_position(position: int) -> int:
    """A fixed pseudorandom 64-bit number for a number (splitmix64, Steele et al. 2014)."""
    mask = 2**64 - 1
    position = (position + 0x9E3779B97F4A7C15) & mask
    position = ((position ^ (position >> 30)) * 0xBF58476D1CE4E5B9) & mask
    position = ((position ^ (position >> 27)) * 0x94D049BB133111EB) & mask
    return position ^ (position >> 31)


class UnitStatistics:
    """All that is kept of the units: the strongest images, a sample, and both for each class.

    Of each class there are the strongest images and the sum of the responses, for their mean.
    """

    def __init__(
        self, units: int, k: int, sample_size: int, class_count: int, class_k: int
    ) -> None:
        self.top = TopK.make_empty(units, k)
        self.sample = HashedSample.make_empty(sample_size, units)
        self.classes = TopK.make_empty(class_count, units, class_k)
        self.sums = torch.zeros(class_count, units, dtype=torch.float64)
        self.counts = torch.zeros(class_count, dtype=torch.float64)

        self._journal = ChangeJournal()

        # The batch that is being added: its ids and classes, and its rows that are in the sample.
        self._ids = torch.empty(0, dtype=torch.long)
        self._labels = torch.empty(0, dtype=torch.long)
        self._sample_rows = torch.empty(0, dtype=torch.long)
        self._sample_slots = torch.empty(0, dtype=torch.long)

    @classmethod
    def from_description(cls, description: ScanDescription) -> "UnitStatistics":
        """Empty statistics for a scan."""
        return cls(
            units=description.unit_count,
            k=description.k,
            sample_size=description.sample_size,
            class_count=len(description.class_names),
            class_k=description.class_k,
        )

    def begin_batch(self, ids: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Announces the ids, classes (−1 unknown) and dataset positions of a batch, N each."""
        self._journal.forget_changes()
        self._ids = ids
        self._labels = labels
        self._sample_rows, self._sample_slots = self.sample.admit_images(
            ids, positions, self._journal
        )
        if len(self.counts):
            known_labels = labels[labels >= 0]
            ones = torch.ones(len(known_labels), dtype=torch.float64)
            counts = self.counts.index_add(0, known_labels, ones)
            self._journal.assign(self.counts, slice(None), counts)

    def undo_batch(self) -> None:
        """Takes back everything since `begin_batch`."""
        self._journal.undo_changes()

    def add_responses(self, units: slice, values: Tensor, locate: LocatePeaks) -> None:
        """Takes in the batch's responses N×U of one layer, which has the units `units`."""
        self.top.select_part(units).add_batch(values, self._ids, locate, self._journal)
        if len(self._sample_rows):
            self._add_to_sample(units, values, locate)
        if len(self.counts):
            self._add_to_classes(units, values, locate)

    def _add_to_sample(self, units: slice, values: Tensor, locate: LocatePeaks) -> None:
        rows = self._sample_rows
        unit_count = values.shape[1]
        row_pairs = rows.repeat_interleave(unit_count)
        unit_pairs = torch.arange(unit_count).repeat(len(rows))
        peaks = locate(row_pairs, unit_pairs).view(-1, unit_count)
        index = (self._sample_slots, units)
        self._journal.assign(self.sample.values, index, values[rows])
        self._journal.assign(self.sample.peaks, index, peaks.to(torch.int32))

    def _add_to_classes(self, units: slice, values: Tensor, locate: LocatePeaks) -> None:
        for label in self._labels[self._labels >= 0].unique().tolist():
            rows = (self._labels == label).nonzero()[:, 0]

            def locate_in_class(index: Tensor, unit: Tensor, rows: Tensor = rows) -> Tensor:
                return locate(rows[index], unit)

            class_top = self.classes.select_part(label).select_part(units)
            class_top.add_batch(values[rows], self._ids[rows], locate_in_class, self._journal)
            added_sums = values[rows].nan_to_num(0, 0, 0).double().sum(0)
            index = (label, units)
            self._journal.assign(self.sums, index, self.sums[index] + added_sums)

    # ── for the store, and for sending ──

    def name_tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the state file; without copies."""
        return {
            "top.values": self.top.values,
            "top.ids": self.top.ids,
            "top.places": self.top.peaks,
            "sample.ids": self.sample.ids,
            "sample.positions": self.sample.positions,
            "sample.values": self.sample.values,
            "sample.places": self.sample.peaks,
            "class.values": self.classes.values,
            "class.ids": self.classes.ids,
            "class.places": self.classes.peaks,
            "class.sums": self.sums,
            "class.counts": self.counts,
        }

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `name_tensors` gave."""
        for name, tensor in self.name_tensors().items():
            tensor.copy_(tensors[name])

    def export_partial(self) -> dict[str, Tensor]:
        """The tensors for sending: of the classes only those that occurred, listed in `seen`."""
        occurring_classes = self.counts.nonzero()[:, 0]
        tensors = {"seen": occurring_classes}
        for name, tensor in self.name_tensors().items():
            is_per_class = name.startswith("class.")
            tensors[name] = tensor[occurring_classes] if is_per_class else tensor
        return tensors

    def merge_partial(self, partial: Mapping[str, Tensor], first_id: int) -> None:
        """Takes in what `export_partial` gave of other images, whose id 0 is `first_id` here.

        Only the sums of the class means may round differently.
        """
        self.top.merge_from(
            TopK(
                partial["top.values"],
                shift_ids(partial["top.ids"], first_id),
                partial["top.places"],
            )
        )
        self.sample.merge_from(
            HashedSample(
                shift_ids(partial["sample.ids"], first_id),
                partial["sample.positions"],
                partial["sample.values"],
                partial["sample.places"],
            )
        )
        partial_classes = TopK(
            partial["class.values"],
            shift_ids(partial["class.ids"], first_id),
            partial["class.places"],
        )
        for row, label in enumerate(partial["seen"].tolist()):
            self.classes.select_part(label).merge_from(partial_classes.select_part(row))
        self.sums.index_add_(0, partial["seen"], partial["class.sums"])
        self.counts.index_add_(0, partial["seen"], partial["class.counts"])


def shift_ids(ids: Tensor, first_id: int) -> Tensor:
    """Ids that count from 0 as ids that count from `first_id`; −1 stays."""
    return ids.where(ids < 0, ids + first_id)
