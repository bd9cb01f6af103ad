"""The streaming top-k against a full sort, whatever the batches and their order."""

from collections.abc import Callable
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.data.scan.unit_statistics import HashedSample, TopK, UnitStatistics, hash_position

UNITS = 3
RESPONSES = st.sampled_from(
    [-1.0, 0.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf"), float("-inf")]
)


def sort_literally(values: list[list[float]], k: int, unit: int) -> list[tuple[float, int]]:
    """Value and id by falling value, then rising id, without NaN and −inf."""
    ranked = [
        (-row[unit], id)
        for id, row in enumerate(values)
        if row[unit] == row[unit] and row[unit] > float("-inf")
    ]
    return [(-value, id) for value, id in sorted(ranked)[:k]]


def locate_by_id(ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Gives flat positions from which image and unit can be told."""
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
    top = TopK.make_empty(UNITS, k)
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        ids = torch.tensor(order[start:end], dtype=torch.long)
        if len(ids):
            batch = torch.tensor([values[id] for id in ids.tolist()])
            top.add_batch(batch, ids, locate_by_id(ids))
    for unit in range(UNITS):
        expected = sort_literally(values, k, unit)
        entries = [
            (float(value), int(id))
            for value, id in zip(top.values[unit], top.ids[unit], strict=True)
            if id >= 0
        ]
        assert entries == expected
        peaks = top.peaks[unit, : len(expected)].tolist()
        assert peaks == [id * 10 + unit for _, id in expected]
        assert (top.values[unit, len(expected) :] == -torch.inf).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.lists(st.integers(0, 40), max_size=4))
def test_sample_is_the_smallest_hashes(count: int, size: int, cuts: list[int]) -> None:
    sample = HashedSample.make_empty(size, 1)
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    for start, end in pairwise(bounds):
        positions = torch.arange(start, end)
        rows, slots = sample.admit_images(positions, positions)
        sample.values[slots, 0] = (rows + start).float()
    ids = sorted(int(id) for id in sample.ids if id >= 0)
    assert ids == sorted(sorted(range(count), key=hash_position)[:size])
    assert sorted(sample.values[sample.ids >= 0, 0].tolist()) == ids


def test_sample_is_uniform() -> None:
    chosen = sorted(range(10_000), key=hash_position)[:1000]
    assert abs(sum(chosen) / 1000 - 4999.5) < 4 * 10_000 / 12**0.5 / 1000**0.5


def test_hashes_are_splitmix64() -> None:
    """The first outputs of the reference implementation (Vigna, splitmix64.c) for seed 0."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [hash_position(number * gamma % 2**64) for number in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_classes_have_their_own_lists_and_means() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, 4, generator=generator)
    labels = torch.randint(-1, 3, (30,), generator=generator)
    statistics = UnitStatistics(4, 5, 8, 3, 2)
    for start in range(0, 30, 7):
        ids = torch.arange(start, min(start + 7, 30))
        statistics.begin_batch(ids, labels[ids], ids)
        statistics.add_responses(slice(0, 4), values[ids], locate_by_id(ids))
    means = statistics.sums / statistics.counts[:, None]
    for label in range(3):
        ids = (labels == label).nonzero()[:, 0]
        best = values[ids].sort(dim=0, descending=True, stable=True)
        torch.testing.assert_close(statistics.classes.values[label], best.values[:2].T)
        best_ids = ids[best.indices[:2]].T
        assert torch.equal(statistics.classes.ids[label].long(), best_ids)
        assert torch.equal(
            statistics.classes.peaks[label].long(), best_ids * 10 + torch.arange(4)[:, None]
        )
        torch.testing.assert_close(means[label].float(), values[ids].mean(0))


def test_sample_holds_the_responses_of_every_layer() -> None:
    """Two layers, of 2 and 3 units, in batches; the sample is larger than what enters at once."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(20, 5, generator=generator)
    statistics = UnitStatistics(5, 2, 6, 0, 1)
    for start in range(0, 20, 3):
        ids = torch.arange(start, min(start + 3, 20))
        statistics.begin_batch(ids, torch.full((len(ids),), -1), ids)
        for units in (slice(0, 2), slice(2, 5)):
            statistics.add_responses(units, values[ids, units], locate_by_id(ids))
    sampled = statistics.sample.ids.long()
    assert sorted(sampled.tolist()) == sorted(sorted(range(20), key=hash_position)[:6])
    assert torch.equal(statistics.sample.values, values[sampled])
    units_in_layer = torch.tensor([0, 1, 0, 1, 2])
    assert torch.equal(statistics.sample.peaks.long(), sampled[:, None] * 10 + units_in_layer)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 40), max_size=4))
def test_partial_statistics_join_to_the_total(seed: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 3, (40, 4), generator=generator).float() / 2  # many equal ones
    labels = torch.randint(-1, 3, (40,), generator=generator)
    positions = torch.arange(40) * 2 + 7
    total = UnitStatistics(4, 5, 8, 3, 2)
    joined = UnitStatistics(4, 5, 8, 3, 2)
    for start, end in pairwise([0, *sorted(cuts), 40]):
        partial = UnitStatistics(4, 5, 8, 3, 2)
        ids = torch.arange(start, end)
        for statistics, batch_ids in ((total, ids), (partial, ids - start)):
            statistics.begin_batch(batch_ids, labels[ids], positions[ids])
            statistics.add_responses(slice(0, 4), values[ids], locate_by_id(ids))
        joined.merge_partial(partial.export_partial(), start)

    joined_order = joined.sample.ids.argsort()
    total_order = total.sample.ids.argsort()
    for name, expected in total.name_tensors().items():
        tensor = joined.name_tensors()[name]
        if name.startswith("sample."):
            assert torch.equal(tensor[joined_order], expected[total_order]), name
        else:
            assert torch.equal(tensor, expected), name


def test_restored_statistics_continue() -> None:
    statistics = UnitStatistics(4, 5, 8, 3, 2)
    for tensor in statistics.name_tensors().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    restored = UnitStatistics(4, 5, 8, 3, 2)
    restored.restore_tensors(statistics.name_tensors())
    for name, tensor in statistics.name_tensors().items():
        assert torch.equal(restored.name_tensors()[name], tensor), name
