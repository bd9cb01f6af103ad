"""The strongest, and a sample: kept while responses stream by, the same whatever the batches and their order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LocatePeaks = Callable[[Tensor, Tensor], Tensor]

"""Given rows of a batch and units of a layer, the places of the maxima (row × columns + column)."""


class TopK(NamedTuple):
    """The k strongest of each unit: values falling, ties by rising id; U×k. Empty places have −inf and id −1."""

    values: Tensor
    ids: Tensor
    places: Tensor

    @classmethod
    def make_empty(cls, *shape: int) -> "TopK":
        """Nothing seen yet."""
        return cls(
            torch.full(shape, -torch.inf),
            torch.full(shape, -1, dtype=torch.int32),
            torch.full(shape, -1, dtype=torch.int32),
        )  # ids to 2³¹ − 1

    def select_part(self, index: slice | int) -> "TopK":
        """A view of some units, or of one class."""
        return TopK(*(tensor[index] for tensor in self))

    def add_batch(self, values: Tensor, ids: Tensor, locate: LocatePeaks) -> None:
        """Takes in a batch, N×U and N, in place. NaN and −inf never win."""
        values, ids = values.T, ids.to(self.ids)
        last, last_id = self.values[:, -1:], self.ids[:, -1:]
        better = (values > last) | ((values == last) & (ids < last_id))
        units = better.any(1).nonzero()[:, 0]
        if not len(units):
            return
        better, k = better[units], self.values.shape[1]
        candidates = torch.cat([self.values[units], values[units].where(better, -torch.inf)], 1)
        whose = torch.cat([self.ids[units], ids.expand(len(units), -1).where(better, -1)], 1)
        order = rank_by_value(candidates, whose)[:, :k]
        places = torch.cat([self.places[units], self.places.new_full(better.shape, -1)], 1).gather(
            1, order
        )
        kept = candidates.gather(1, order)
        new = (order >= k) & (kept > -torch.inf)
        if bool(new.any()):
            row, _ = new.nonzero(as_tuple=True)
            places[new] = locate(order[new] - k, units[row]).to(places)
        for held, now in zip(self, (kept, whose.gather(1, order), places), strict=True):
            held[units] = now

    def merge_from(self, other: "TopK") -> None:
        """Takes in the strongest of other images, in place: the result does not depend on how the images were divided."""
        both = TopK(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))
        order = rank_by_value(both.values, both.ids)[:, : self.values.shape[1]]
        for held, joined in zip(self, both, strict=True):
            held.copy_(joined.gather(1, order))


def rank_by_value(values: Tensor, ids: Tensor) -> Tensor:
    """The order of each row by falling value, then rising id."""
    order = ids.argsort(dim=1, stable=True)
    return order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))


class HashedSample(NamedTuple):
    """The images whose positions in the collection have the smallest hashes: a uniform sample that does not depend on the
    order. ids and positions S, values and places S×U."""

    ids: Tensor
    positions: Tensor
    values: Tensor
    places: Tensor

    @classmethod
    def make_empty(cls, size: int, units: int) -> "HashedSample":
        """Nothing seen yet."""
        held, nobody = TopK.make_empty(size, units), torch.full((size,), -1, dtype=torch.int32)
        return cls(nobody, nobody.clone(), held.values, held.places)

    def admit_images(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows of a batch enter, and the slots that they take."""
        size = len(self.ids)
        everyone = [*self.positions.tolist(), *positions.tolist()]
        ranked = sorted(
            range(len(everyone)),
            key=lambda index: (everyone[index] < 0, hash_position(everyone[index])),
        )
        stay = set(ranked[:size])
        rows = sorted(index - size for index in stay if index >= size)
        slots = [index for index in range(size) if index not in stay][: len(rows)]
        self.ids[slots], self.positions[slots] = (
            ids[rows].to(self.ids),
            positions[rows].to(self.ids),
        )
        return torch.tensor(rows, dtype=torch.long), torch.tensor(slots, dtype=torch.long)

    def merge_from(self, other: "HashedSample") -> None:
        """Takes in the sample of other images."""
        other = HashedSample(*(tensor[other.positions >= 0] for tensor in other))
        rows, slots = self.admit_images(other.ids, other.positions)
        self.values[slots], self.places[slots] = other.values[rows], other.places[rows]


def hash_position(position: int) -> int:
    """A fixed pseudorandom 64-bit number for a number (splitmix64, Steele et al. 2014)."""
    mask = 2**64 - 1
    position = (position + 0x9E3779B97F4A7C15) & mask
    position = ((position ^ (position >> 30)) * 0xBF58476D1CE4E5B9) & mask
    position = ((position ^ (position >> 27)) * 0x94D049BB133111EB) & mask
    return position ^ (position >> 31)


class UnitStatistics:
    """All that is kept of the units while images stream by: strongest, sample, strongest and mean for each class."""

    def __init__(
        self, units: int, k: int, sample_size: int, class_count: int, class_k: int
    ) -> None:
        self.top = TopK.make_empty(units, k)
        self.sample = HashedSample.make_empty(sample_size, units)
        self.classes = TopK.make_empty(class_count, units, class_k)
        self.sums = torch.zeros(class_count, units, dtype=torch.float64)
        self.counts = torch.zeros(class_count, dtype=torch.float64)
        self._ids = self._labels = self._rows = self._slots = torch.empty(0, dtype=torch.long)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "UnitStatistics":
        """An empty one for a pass."""
        units = sum(layer["units"] for layer in facts["layers"].values())
        return cls(units, facts["k"], facts["sample"], len(facts["class_names"]), facts["class_k"])

    def begin_batch(self, ids: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Announces a batch by the numbers, classes and positions in the collection of its images."""
        self._ids, self._labels = ids, labels
        self._rows, self._slots = self.sample.admit_images(ids, positions)
        if len(self.counts):
            self.counts.index_add_(
                0, labels[labels >= 0], torch.ones(int((labels >= 0).sum()), dtype=torch.float64)
            )

    def add_responses(self, units: slice, values: Tensor, locate: LocatePeaks) -> None:
        """Takes in the responses N×U of one layer, whose units have these numbers."""
        self.top.select_part(units).add_batch(values, self._ids, locate)
        if len(self._rows):
            self.sample.values[self._slots, units] = values[self._rows]
            width = values.shape[1]
            found = locate(
                self._rows.repeat_interleave(width), torch.arange(width).repeat(len(self._rows))
            )
            self.sample.places[self._slots, units] = found.view(-1, width).to(torch.int32)
        for label in self._labels[self._labels >= 0].unique().tolist() if len(self.counts) else []:
            rows = (self._labels == label).nonzero()[:, 0]
            inside = TopK(*(tensor[label, units] for tensor in self.classes))
            inside.add_batch(
                values[rows], self._ids[rows], lambda at, unit, rows=rows: locate(rows[at], unit)
            )
            self.sums[label, units] += values[rows].nan_to_num(0, 0, 0).double().sum(0)

    def name_tensors(self) -> dict[str, Tensor]:
        """Everything by name, as it is written to the store; without copies."""
        parts = {"top": self.top, "sample": self.sample, "class": self.classes}
        named = {
            f"{part}.{field}": tensor
            for part, held in parts.items()
            for field, tensor in held._asdict().items()
        }
        return {**named, "class.sums": self.sums, "class.counts": self.counts}

    def export_partial(self) -> dict[str, Tensor]:
        """The same for sending: only the classes that were seen, which `seen` lists."""
        seen = self.counts.nonzero()[:, 0]
        return {
            "seen": seen,
            **{
                name: tensor[seen] if name.startswith("class.") else tensor
                for name, tensor in self.name_tensors().items()
            },
        }

    def merge_partial(self, partial: Mapping[str, Tensor], first_id: int) -> None:
        """Takes in a part of other images, whose number 0 is `first` here. Only the sums of the means round differently."""

        def fields(kind: str, names: Sequence[str]) -> Iterator[Tensor]:
            for name in names:
                tensor = partial[f"{kind}.{name}"]
                yield tensor.where(tensor < 0, tensor + first_id) if name == "ids" else tensor

        self.top.merge_from(TopK(*fields("top", TopK._fields)))
        self.sample.merge_from(HashedSample(*fields("sample", HashedSample._fields)))
        classes = TopK(*fields("class", TopK._fields))
        for row, label in enumerate(partial["seen"].tolist()):
            self.classes.select_part(label).merge_from(classes.select_part(row))
        self.sums.index_add_(0, partial["seen"], partial["class.sums"])
        self.counts.index_add_(0, partial["seen"], partial["class.counts"])

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what was written."""
        for name, tensor in self.name_tensors().items():
            tensor.copy_(tensors[name])
