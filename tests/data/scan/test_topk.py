"""The streaming top-k against a full sort, whatever the batches and their order."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.data.scan.topk import HashedSample, TopK, UnitStatistics, hash_position

UNITS, PLACES = 3, 4
RESPONSES = st.sampled_from(
    [-1.0, 0.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf"), float("-inf")]
)


def literal(values: list[list[float]], k: int, unit: int) -> list[tuple[float, int]]:
    """Sorted by falling value, then rising id; what is not a response left out."""
    rows = [
        (-row[unit], number)
        for number, row in enumerate(values)
        if row[unit] == row[unit] and row[unit] > float("-inf")
    ]
    return [(-value, number) for value, number in sorted(rows)[:k]]


def places_of(ids: Tensor) -> object:
    """A place that can be told from image and unit."""
    return lambda rows, units: ids[rows] * 10 + units


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_merge_equals_a_full_sort(data: st.DataObject) -> None:
    values = data.draw(
        st.lists(st.lists(RESPONSES, min_size=UNITS, max_size=UNITS), min_size=1, max_size=14)
    )
    order = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    k = data.draw(st.integers(1, 6))
    held = TopK.make_empty(UNITS, k)
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        ids = torch.tensor(order[start:end], dtype=torch.long)
        if len(ids):
            held.add_batch(
                torch.tensor([values[number] for number in ids.tolist()]), ids, places_of(ids)
            )  # type: ignore[arg-type]
    for unit in range(UNITS):
        wanted = literal(values, k, unit)
        found = [
            (float(v), int(i))
            for v, i in zip(held.values[unit], held.ids[unit], strict=True)
            if i >= 0
        ]
        assert found == wanted
        assert held.places[unit, : len(wanted)].tolist() == [
            number * 10 + unit for _, number in wanted
        ]
        assert (held.values[unit, len(wanted) :] == -torch.inf).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.lists(st.integers(0, 40), max_size=4))
def test_sample_is_the_smallest_hashes(count: int, size: int, cuts: list[int]) -> None:
    sampled = HashedSample.make_empty(size, 1)
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    for start, end in pairwise(bounds):
        rows, slots = sampled.admit_images(torch.arange(start, end), torch.arange(start, end))
        sampled.values[slots, 0] = (rows + start).float()
    kept = sorted(int(number) for number in sampled.ids if number >= 0)
    assert kept == sorted(sorted(range(count), key=hash_position)[:size])
    assert sorted(sampled.values[sampled.ids >= 0, 0].tolist()) == kept


def test_sample_is_uniform() -> None:
    chosen = sorted(range(10_000), key=hash_position)[:1000]
    assert abs(sum(chosen) / 1000 - 4999.5) < 4 * 10_000 / 12**0.5 / 1000**0.5


def test_classes_have_their_own_lists_and_means() -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = (
        torch.randn(30, 4, generator=generator),
        torch.randint(-1, 3, (30,), generator=generator),
    )
    tally = UnitStatistics(4, 5, 8, 3, 2)
    for start in range(0, 30, 7):
        ids = torch.arange(start, min(start + 7, 30))
        tally.begin_batch(ids, labels[ids], ids)
        tally.add_responses(slice(0, 4), values[ids], places_of(ids))  # type: ignore[arg-type]
    for label in range(3):
        mine = (labels == label).nonzero()[:, 0]
        best = values[mine].sort(dim=0, descending=True, stable=True)
        torch.testing.assert_close(tally.classes.values[label], best.values[:2].T)
        assert torch.equal(tally.classes.ids[label].long(), mine[best.indices[:2]].T)
        torch.testing.assert_close(
            (tally.sums / tally.counts[:, None])[label].float(), values[mine].mean(0)
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 40), max_size=4))
def test_parts_join_to_the_whole(seed: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 3, (40, 4), generator=generator).float() / 2  # many equal ones
    labels, positions = torch.randint(-1, 3, (40,), generator=generator), torch.arange(40) * 2 + 7
    whole, joined = UnitStatistics(4, 5, 8, 3, 2), UnitStatistics(4, 5, 8, 3, 2)
    for start, end in pairwise([0, *sorted(cuts), 40]):
        part, ids = UnitStatistics(4, 5, 8, 3, 2), torch.arange(start, end)
        for tally, numbers in ((whole, ids), (part, ids - start)):
            tally.begin_batch(numbers, labels[ids], positions[ids])
            tally.add_responses(slice(0, 4), values[ids], places_of(ids))  # type: ignore[arg-type]
        joined.merge_partial(part.export_partial(), start)
    slots = {id(tally): tally.sample.ids.argsort() for tally in (whole, joined)}
    for name in whole.name_tensors():
        got, wanted = (
            tally.name_tensors()[name][slots[id(tally)]]
            if name.startswith("sample.")
            else tally.name_tensors()[name]
            for tally in (joined, whole)
        )
        assert torch.equal(got, wanted), name
