"""A memory budget splits the work and changes no number."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from helpers import small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.models.tracing import batch_size
from sightline.models.tracing.batch_size import (
    CACHE_FRIENDLY_BYTES,
    MAX_TIMED_SHARE,
    BatchSizeSearch,
    choose_batch_size,
    estimate_max_batch,
    split_into_batches,
)

SIZES = (
    8 * 32 * 32,
    8 * 32 * 32,
    8 * 16 * 16,
    12 * 16 * 16,
    12 * 16 * 16,
    12 * 8 * 8,
    16 * 8 * 8,
    16 * 8 * 8,
    16,
    16,
    5,
)
METHODS: dict[str, tuple[str, Callable[..., sl.Result]]] = {
    "gradient": ("attribution", sl.saliency),
    "smoothgrad": (
        "attribution",
        lambda model, image, **knobs: sl.saliency(
            model, image, kind="smoothgrad", samples=20, **knobs
        ),
    ),
    "integrated": (
        "attribution",
        lambda model, image, **knobs: sl.saliency(
            model, image, kind="integrated", samples=20, **knobs
        ),
    ),
    "scorecam": (
        "cam",
        lambda model, image, **knobs: sl.cam(model, image, kind="scorecam", **knobs),
    ),
    "occlusion": (
        "drop",
        lambda model, image, **knobs: sl.occlusion(
            model, image, window=40, stride=40, incremental=False, **knobs
        ),
    ),
    "rise": ("map", lambda model, image, **knobs: sl.rise(model, image, samples=20, **knobs)),
}


@pytest.fixture
def fresh() -> sl.Model:
    """A model that nothing is known of."""
    return sl.load(small_network(), size=32)


def test_it_counts_the_layers_outputs(tiny: sl.Model) -> None:
    assert [prod(layer.shape) for layer in tiny.layers.values()] == list(SIZES)
    per_image = 4 * sum(SIZES) / 1e9
    assert estimate_max_batch(tiny, smooth(), 10.5 * per_image) == 10
    assert estimate_max_batch(tiny, torch.zeros(1, 3, 64, 64), 42 * per_image) == 10
    assert estimate_max_batch(tiny, smooth(), 3.5 * 3 * 4 * SIZES[0] / 1e9, gradients=False) == 3
    assert estimate_max_batch(tiny, smooth(), 1e-9) == 1


def test_gradients_are_taken_in_blocks_that_are_fast(
    tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A timing would depend on what else runs.
    monkeypatch.setattr(BatchSizeSearch, "is_affordable", lambda _: False)
    plenty, side = 1e6, 32
    image = torch.zeros(1, 3, 4 * side, 4 * side)
    fastest = int(CACHE_FRIENDLY_BYTES / (4 * 16 * SIZES[0]))
    assert choose_batch_size(tiny, image, plenty, image_count=10 * fastest) == fastest
    # Two batches of one size, for one that would be left over.
    assert choose_batch_size(tiny, image, plenty, image_count=2 * fastest + 2) == fastest + 1
    assert choose_batch_size(tiny, image, plenty, image_count=3) == 3
    large = torch.zeros(1, 3, 100 * side, 100 * side)
    assert choose_batch_size(tiny, large, plenty, image_count=100) == 1
    assert choose_batch_size(tiny, image, 1e-9, image_count=100) == 1
    # Memory goes first.
    gigabytes = 5 * plenty / estimate_max_batch(tiny, image, plenty)
    assert choose_batch_size(tiny, image, gigabytes, image_count=11) <= 5


def test_double_precision_takes_twice_as_much(tiny: sl.Model) -> None:
    double = sl.load(small_network().double(), size=32)
    assert (
        estimate_max_batch(double, smooth(), 0.01) == estimate_max_batch(tiny, smooth(), 0.01) // 2
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_small_budget_makes_smaller_batches_and_the_same_numbers(
    name: str, fresh: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "MAX_TIMED_SHARE", 0)
    value, method = METHODS[name]
    image, sizes, run = smooth(4, side=80), list[int](), sl.Model.run

    def watched(self: sl.Model, picture: Tensor, layers: list[str]) -> dict[str, Tensor]:
        sizes.append(len(picture))
        return run(self, picture, layers)

    monkeypatch.setattr(sl.Model, "run", watched)
    large = method(fresh, image, label=1, memory=4.0)
    most = max(sizes)
    sizes.clear()
    budget = (
        3.5 * 4 * (80 / 32) ** 2 * (sum(SIZES) if value == "attribution" else 3 * SIZES[0]) / 1e9
    )
    small = method(fresh, image, label=1, memory=budget)
    of_parts = [size for size in sizes if size != len(image)]
    assert most >= 4
    assert max(of_parts) == 3
    assert small.tensors[value].abs().max() > 0
    torch.testing.assert_close(small.tensors[value], large.tensors[value], rtol=1e-4, atol=1e-6)


# ── the timing ──

PER_IMAGE = {
    "small ones are fastest": ({1: 9, 2: 12, 4: 13, 8: 5}, 1, 4),
    "until it no longer falls": ({1: 20, 2: 15, 4: 11, 8: 10, 16: 12, 32: 25}, 8, 32),
    "one odd time does not end it": ({1: 20, 2: 21, 4: 11, 8: 12, 16: 12}, 4, 16),
    "as good is not better": ({1: 20, 2: 10, 4: 9.9, 8: 9.8}, 2, 8),
    "it falls for ever": ({1: 64, 2: 32, 4: 16, 8: 8, 16: 4, 32: 2, 64: 1}, 64, 64),
}


class Clock:
    """A clock that stands still, but for what runs of a model are said to take for each image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        run = sl.Model.run

        def run_for_a_while(model: sl.Model, images: Tensor, layers: list[str]) -> object:
            self.sizes.append(len(images))
            self.now += len(images) * seconds[len(images)]
            return run(model, images, layers)

        monkeypatch.setattr(sl.Model, "run", run_for_a_while)
        monkeypatch.setattr(batch_size.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("case", PER_IMAGE)
def test_a_search_doubles_until_the_time_no_longer_falls(case: str) -> None:
    seconds, fastest, last = PER_IMAGE[case]
    search = BatchSizeSearch()
    assert search.fastest_size == 0
    while not search.is_finished:
        search.record_time(seconds[search.next_size])
    assert search.fastest_size == fastest
    assert max(search.seconds_per_image) == last


@pytest.mark.parametrize("gradients", [True, False])
def test_the_network_itself_is_timed_once(
    fresh: sl.Model, monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    clock = Clock(monkeypatch, {1: 20, 2: 15, 4: 11, 8: 10, 16: 12, 32: 25})
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))

    def choose(count: int, **options: bool) -> int:
        return choose_batch_size(fresh, image, image_count=count, **options)

    assert choose(2000, gradients=gradients) == 8
    assert clock.sizes == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert choose(5000, gradients=gradients) == 8
    assert choose(5, gradients=gradients) == 5
    assert len(clock.sizes) == 12
    choose(2000, gradients=not gradients)
    assert len(clock.sizes) == 24
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose(2000, gradients=gradients)
    assert len(clock.sizes) == 36


def test_little_work_is_not_timed_until_it_adds_up(
    fresh: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, {1: 20, 2: 15, 4: 11, 8: 10, 16: 12, 32: 25})
    image = torch.rand(1, 3, 32, 48)
    announced = 0
    for _ in range(60):
        choose_batch_size(fresh, image, image_count=40)
        announced += 40
        assert sum(clock.sizes) <= MAX_TIMED_SHARE * announced
        assert clock.sizes or announced < 140 + 40
    assert clock.sizes == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]


def test_batches_of_about_one_size() -> None:
    assert list(map(list, split_into_batches(7, 3))) == [[0, 1], [2, 3], [4, 5, 6]]
    assert list(map(list, split_into_batches(6, 3))) == [[0, 1, 2], [3, 4, 5]]
    assert list(map(len, split_into_batches(37, 6))) == [5, 5, 5, 6, 5, 5, 6]
    assert list(map(len, split_into_batches(2, 5))) == [2]
    assert split_into_batches(0, 3) == []


def test_no_more_are_timed_than_fit(fresh: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {1: 20, 2: 15, 4: 11})
    per_image = 4 * sum(SIZES) / 1e9
    image = torch.rand(1, 3, 32, 32)
    assert choose_batch_size(fresh, image, 5.5 * per_image, image_count=9000) == 5
    assert max(clock.sizes) == 4
    assert choose_batch_size(fresh, image, 1.5 * per_image, image_count=9000) == 1


def test_the_number_changes_results_only_to_rounding(
    fresh: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = smooth(side=48)
    few = sl.rise(fresh, image, label=1, samples=640, batch=3).tensors["map"]
    clock = Clock(monkeypatch, dict.fromkeys(range(1, 65), 1.0) | {4: 0.5})
    timed = sl.rise(fresh, image, label=1, samples=640).tensors["map"]
    assert clock.sizes.count(4) == 2 + 640 / 4
    torch.testing.assert_close(timed, few, rtol=1e-5, atol=1e-6)
