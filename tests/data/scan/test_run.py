"""The pass: against a brute-force one, stopped and continued, killed, refused, on a full disk."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from helpers import LABELS, ROOT, small_network, smooth
from PIL import Image
from torch import Tensor, nn

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.scan import run
from sightline.data.scan.run import describe_scan, make_store_path
from sightline.data.scan.unit_statistics import UnitStatistics
from sightline.data.scan.worker import ScanSegment
from sightline.data.store import lance_store
from sightline.data.store.interface import ErrorRow, ScanProgress
from sightline.data.store.lance_reader import open_table
from sightline.data.store.maintenance import compact_store, summarize_store, verify_store
from sightline.images.decode.center_crop import fit_center_crop, stack_crops
from sightline.images.io import pictures as images
from sightline.images.transforms import crop_center, resize_short_side

PHOTO_COUNT = 44  # one of them broken

OPTIONS: dict[str, Any] = {"batch": 8, "k": 5, "vectors": ("penultimate", "conv2")}


@pytest.fixture(scope="module")
def whole(tiny: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A complete scan of the photographs."""
    path = tmp_path_factory.mktemp("stores") / "whole.scan"
    return sl.scan(tiny, photos, store=path, **OPTIONS)


def list_numbers(scan: sl.Scan) -> list[Tensor]:
    """All numbers of a scan."""
    numbers = [*scan.top5, scan.sizes]
    numbers += [scan.vectors(layer) for layer in scan.vector_layers]
    for layer in scan.layers:
        for entries in (scan.top(layer), scan.sample(layer), scan.class_top(layer)):
            numbers += [tensor for tensor in entries if tensor is not None]
        numbers.append(scan.class_means(layer))
        numbers.append(torch.from_numpy(scan.responses(layer)))
    return numbers


def assert_equal(scan: sl.Scan, expected: sl.Scan) -> None:
    """Asserts that two scans hold the same to the last bit."""
    assert scan.paths == expected.paths
    assert scan.errors == expected.errors
    for numbers, expected_numbers in zip(list_numbers(scan), list_numbers(expected), strict=True):
        assert torch.equal(numbers, expected_numbers)


def list_data_files(store: Path) -> set[str]:
    """The files that hold a store's images."""
    return {path.name for path in (store / "images.lance" / "data").iterdir()}


def raise_full_disk(path: Path) -> Any:
    """What writing gives on a full disk."""
    raise OSError(28, os.strerror(28))


def test_squares_are_those_of_fit(tiny: sl.Model, whole: sl.Scan) -> None:
    fitted = torch.cat([tiny.fit(images.read(path)) for path in whole.paths])
    fitted = (fitted * 255).round() / 255  # the pass feeds 8-bit pixels
    squares = stack_crops(
        [fit_center_crop(Path(path).read_bytes(), 32, 32) for path in whole.paths]
    )
    assert (squares - fitted).abs().max() < 1.01 / 255


@pytest.mark.parametrize("network", ["tiny", "wide"])
def test_equals_a_full_pass(
    network: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With square maps, and with maps of 16 × 32 and 8 × 10."""
    model: sl.Model = request.getfixturevalue(network)
    scan = sl.scan(model, photos, store=tmp_path / "a.scan", **OPTIONS)
    squares = stack_crops([fit_center_crop(Path(path).read_bytes(), 32, 32) for path in scan.paths])
    with torch.no_grad():
        outputs = model.features(squares, [*scan.layers, "penultimate", "logits"])
    torch.testing.assert_close(scan.vectors(), outputs["penultimate"])
    torch.testing.assert_close(scan.vectors("conv2"), outputs["conv2"].mean((2, 3)))
    probabilities = outputs["logits"].softmax(1).sort(1, descending=True)
    torch.testing.assert_close(scan.top5[1], probabilities.values[:, :5])
    assert torch.equal(scan.top5[0], probabilities.indices[:, :5])

    for layer in scan.layers:
        peaks = outputs[layer].flatten(2).max(2).values
        responses = scan.responses(layer)
        assert responses.dtype == np.float16
        np.testing.assert_allclose(responses, peaks.numpy(), rtol=6e-4, atol=1e-6)
        top = scan.top(layer)
        torch.testing.assert_close(top.values, peaks.sort(0, descending=True).values[:5])
        torch.testing.assert_close(peaks.gather(0, top.ids), top.values)
        units = torch.arange(top.ids.shape[1]).expand_as(top.ids)
        assert top.positions is not None
        rows, columns = top.positions.unbind(-1)
        torch.testing.assert_close(outputs[layer][top.ids, units, rows, columns], top.values)

        sample = scan.sample(layer)
        torch.testing.assert_close(peaks.gather(0, sample.ids), sample.values)
        assert sample.positions is not None
        rows, columns = sample.positions.unbind(-1)
        units = torch.arange(sample.ids.shape[1]).expand_as(sample.ids)
        torch.testing.assert_close(outputs[layer][sample.ids, units, rows, columns], sample.values)
        # All images fit into the sample.
        torch.testing.assert_close(sample.quantiles, peaks.quantile(torch.linspace(0, 1, 11), 0))

        assert scan.classes is not None
        class_top = scan.class_top(layer)
        for label in (0, 1):
            class_peaks = peaks[scan.classes == label]
            expected_values = class_peaks.sort(0, descending=True).values[:5]
            torch.testing.assert_close(class_top.values[label], expected_values)
            torch.testing.assert_close(
                peaks.gather(0, class_top.ids[label]), class_top.values[label]
            )
            torch.testing.assert_close(scan.class_means(layer)[label], class_peaks.mean(0))


def test_what_a_scan_tells(whole: sl.Scan, photos: Path) -> None:
    assert whole.images == PHOTO_COUNT - 1
    assert whole.complete
    assert whole.layers == ["conv1", "conv2", "conv3"]
    assert whole.class_names == ["even", "odd"]
    assert whole.classes is not None
    assert whole.classes.tolist() == [0] * 21 + [1] * 22
    assert [path for path, _ in whole.errors] == [str(photos / "even" / "004.jpg")]
    assert whole.errors[0][1].endswith("it looks like text")
    assert whole.sizes.tolist() == [[40, 56]] * 43
    assert whole.thumbnail(3).shape == (1, 3, 32, 32)
    assert (whole.thumbnail(3) - whole.image(3)).abs().mean() < 0.03
    assert [len(data) > 100 for data in whole.thumbnail_bytes([5, 0])] == [True, True]
    assert whole.model_labels == list(LABELS)
    summary = summarize_store(whole.path)
    assert summary["images"] == 43
    assert summary["errors"] == 1
    assert summary["model"] == "Sequential"
    assert list(summary["layers"]) == whole.layers
    assert verify_store(whole.path) == []
    with pytest.raises(
        sl.SightlineError,
        match=r"no layer in the store whole.scan named 'conv4'; did you mean conv3",
    ):
        whole.top("conv4")
    with pytest.raises(sl.SightlineError, match="id is 43; it must lie between 0 and 42"):
        whole.thumbnail(43)


def make_wide_network() -> nn.Module:
    """Its last layer takes maps of 12×20 only."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 12 * 20, 5),
    )


def test_a_network_that_is_not_square_sees_images_of_its_own_aspect(
    photos: Path, tmp_path: Path
) -> None:
    model = sl.Model(make_wide_network().eval(), size=(24, 40), resize=27)
    stored = sl.scan(model, photos, store=tmp_path / "a.scan", layers=["0", "2"], k=4, batch=8)
    assert stored.size == (24, 40)
    fitted = torch.cat([model.fit(path) for path in stored.paths])
    for id in (0, 5, 21):
        assert stored.image(id).shape == (1, 3, 24, 40)
        assert (stored.image(id) - fitted[id : id + 1]).abs().mean() < 0.01
        assert stored.thumbnail(id).shape == (1, 3, 24, 40)
    images = torch.cat([stored.image(id) for id in range(stored.images)])
    maps = model.run(images, ["2"])["2"]
    top = stored.top("2")
    assert torch.allclose(top.values, maps.amax((2, 3)).topk(4, 0).values, atol=1e-4)
    for unit in range(8):
        image, (row, column) = top.ids[0, unit], top.positions[0, unit]
        assert torch.isclose(maps[image, unit, row, column], top.values[0, unit], atol=1e-4)
    reopened = sl.scan(model, photos, store=tmp_path / "a.scan", layers=["0", "2"], k=4, batch=8)
    assert reopened.network["side"] == [24, 40]
    with pytest.raises(sl.SightlineError, match="another"):
        sl.scan(model, photos, store=tmp_path / "a.scan", layers=["0", "2"], k=4, size=25)


def test_methods_read_a_scan_that_is_not_square(photos: Path, tmp_path: Path) -> None:
    model = sl.load(make_wide_network(), size=(24, 40))
    store = tmp_path / "a.scan"
    sl.scan(model, photos, store=store)
    patches = sl.patches(model, layer="2", unit=3, store=store)
    assert patches.values["box"].shape[-1] == 4
    assert sl.neighbors(model, id=2, store=store).values["ids"].shape == (1, 8)
    assert sl.embedding(model, store=store).values["places"].shape[1] == 2


# ── stopped and continued ──


def test_stopped_and_continued_is_the_same(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"store": tmp_path / "parts.scan", **OPTIONS}
    first = sl.scan(tiny, photos, callback=lambda _: True, **options)
    assert (first.images, first.complete, first.done) == (7, False, 8)
    assert len(first.vectors()) == 7
    second = sl.scan(tiny, photos, callback=lambda event: event.done >= 24, **options)
    assert second.done == 24
    assert_equal(sl.scan(tiny, photos, **options), whole)
    bytes_before, bytes_after = compact_store(tmp_path / "parts.scan")
    assert bytes_after <= bytes_before
    assert_equal(sl.Scan.open(tmp_path / "parts.scan"), whole)


def test_continues_with_the_stored_batch_size_and_order(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path
) -> None:
    """Another batch size, and layers in another order, are no other scan."""
    store = tmp_path / "parts.scan"
    sl.scan(tiny, photos, store=store, callback=lambda event: event.done >= 16, **OPTIONS)
    batch_ends: list[int] = []
    options: dict[str, Any] = {
        **OPTIONS,
        "batch": 3,
        "layers": ("conv3", "conv1", "conv2"),
        "vectors": ("conv2", "penultimate"),
    }
    scan = sl.scan(
        tiny, photos, store=store, callback=lambda event: batch_ends.append(event.done), **options
    )
    assert batch_ends == [24, 32, 40, 44]
    assert scan.layers == whole.layers
    assert_equal(scan, whole)


def test_a_complete_store_is_read_whatever_the_batch_size(
    tiny: sl.Model, whole: sl.Scan, photos: Path
) -> None:
    def fail(event: run.Passing) -> None:
        raise AssertionError("nothing remains to be done")

    content = (whole.path / "scan.json").read_bytes()
    for batch in (1, 4, 32):
        options = {**OPTIONS, "batch": batch}
        assert_equal(sl.scan(tiny, photos, store=whole.path, callback=fail, **options), whole)
    assert (whole.path / "scan.json").read_bytes() == content


PROGRAM = """
import resource, sys, time
sys.path.insert(0, {tests!r})
from helpers import small_network, LABELS
import sightline as sl
from sightline.data.scan import run
run.MIN_COMMIT_SECONDS, run.MAX_COMMIT_SHARE = 0.0, 1e9
network = small_network()
model = sl.load(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32)
def tell(event):
    print(event.done, flush=True)
    time.sleep(0.05)
def scan(store):
    options = dict(batch=8, k=5, vectors=("penultimate", "conv2"))
    sl.scan(model, {folder!r}, store=store, callback=tell, **options)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    scan({small!r})
except sl.SightlineError as error:
    print(error if "ray" not in sys.modules else "Ray was imported", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
scan({killed!r})
"""


def test_in_a_process_of_its_own(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path
) -> None:
    """Files that may not grow, then a kill in the middle; one process, whose start costs most."""
    small = tmp_path / "small.scan"
    store = tmp_path / "killed.scan"
    program = PROGRAM.format(
        tests=str(ROOT / "tests"), folder=str(photos), small=str(small), killed=str(store)
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while (line := child.stdout.readline()).strip().isdigit():
            pass
        assert line.startswith(f"can't write {small}: File too large")
        while int(child.stdout.readline()) < 24:
            pass
        with pytest.raises(Timeout):
            FileLock(store / "lock").acquire(blocking=False)
        assert (
            store.joinpath("writer")
            .read_text(encoding="utf-8")
            .startswith(f"process {child.pid} on ")
        )
        child.send_signal(signal.SIGKILL)
    stopped = sl.Scan.open(store)
    assert 8 <= stopped.done < PHOTO_COUNT
    assert verify_store(store) == []
    assert_equal(sl.scan(tiny, photos, store=store, **OPTIONS), whole)


# ── a full disk ──


def test_rows_without_a_commit_are_removed(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up between the rows and the state, at the second commit."""
    options: dict[str, Any] = {"store": tmp_path / "full.scan", **OPTIONS}
    sl.scan(tiny, photos, callback=lambda event: event.done >= 16, **options)
    monkeypatch.setattr(lance_store, "replace_atomically", raise_full_disk)
    files_before = list_data_files(options["store"])
    with pytest.raises(
        sl.SightlineError,
        match=r"can't write .*full.scan: No space left on device; 15 images are kept",
    ):
        sl.scan(tiny, photos, **options)
    # Or each further attempt would need more room.
    assert list_data_files(options["store"]) == files_before
    monkeypatch.undo()
    stopped = sl.Scan.open(tmp_path / "full.scan")
    assert (stopped.images, len(stopped.paths), verify_store(stopped.path)) == (15, 15, [])
    assert_equal(sl.scan(tiny, photos, **options), whole)


def test_rows_go_to_the_disk_between_commits(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory does not grow with the speed.

    What waits on the disk is not yet part of the store, and goes with a dead process.
    """
    options: dict[str, Any] = {"store": tmp_path / "waiting.scan", **OPTIONS}
    monkeypatch.setattr(run, "MAX_BUFFERED_ROWS", 10)
    monkeypatch.setattr(run, "MIN_COMMIT_SECONDS", 1e9)

    def interrupt(event: run.Passing) -> None:
        if event.done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sl.scan(tiny, photos, callback=interrupt, **options)
    stopped = sl.Scan.open(options["store"])
    assert stopped.images == 0
    assert open_table(stopped.path, "images").count_rows() == 15
    assert_equal(sl.scan(tiny, photos, **options), whole)
    for path in (stopped.path, whole.path):
        assert lance_store.count_fragments(open_table(path, "images")) == 1


def test_no_room_to_merge(
    tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"store": tmp_path / "full.scan", **OPTIONS}
    sl.scan(tiny, photos, callback=lambda event: event.done >= 16, **options)
    monkeypatch.setattr(lance_store, "iterate_row_batches", raise_full_disk)
    scan = sl.scan(tiny, photos, **options)
    assert scan.complete
    assert len(list_data_files(scan.path)) == 2
    with pytest.raises(
        sl.SightlineError,
        match=r"can't write .*full.scan: No space left on device; 43 images are kept",
    ):
        compact_store(scan.path)
    assert_equal(scan, whole)
    monkeypatch.undo()
    compact_store(scan.path)
    assert len(list_data_files(scan.path)) == 1
    assert_equal(sl.Scan.open(scan.path), whole)


# ── how often it commits ──


class SlowWriter:
    """Counts commits, each of which takes 0.3 seconds of a clock."""

    description = SimpleNamespace(unit_count=1, response_kinds=())

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.progress = ScanProgress(done=100, images=100)
        self.commits: list[ScanProgress] = []

    def add_rows(self, images: object, errors: object, fragments: object) -> None:
        pass

    def commit(self, state: object, progress: ScanProgress) -> None:
        self.clock[0] += 0.3
        self.commits.append(progress)

    def compact(self) -> None:
        raise sl.SightlineError("no room")


def test_commits_take_two_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 4 every 2 seconds: the first commit after 5, then one every 0.3 / 2 % = 15."""
    clock = [50.0]
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def make_segments() -> Iterator[ScanSegment]:
        for done in range(104, 181, 4):
            clock[0] += 2
            yield ScanSegment(done, 3, [], [ErrorRow(done - 1, "path", "reason")])

    writer = SlowWriter(clock)
    events: list[run.Passing] = []
    scan_pass = run.ScanPass(writer, UnitStatistics(1, 1, 1, 0, 1), 180)  # type: ignore[arg-type]
    scan_pass.store_segments(make_segments(), events.append)
    # At 6 s, 22.3 s and 38.6 s, and at the end.
    assert writer.commits == [
        ScanProgress(done=112, images=109, errors=3),
        ScanProgress(done=144, images=133, errors=11),
        ScanProgress(done=176, images=157, errors=19),
        ScanProgress(done=180, images=160, errors=20, complete=True),
    ]
    assert events[0] == run.Passing(done=104, total=180, errors=1, rate=2.0)
    assert events[4] == run.Passing(done=120, total=180, errors=5, rate=pytest.approx(20 / 10.3))


# ── the cache, and what is refused ──


def test_cache_is_reused_until_something_changes(
    tiny: sl.Model,
    write_photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_photos(tmp_path / "photos", 8)
    passes: list[int] = []
    for _ in range(2):
        first = sl.scan(tiny, folder, callback=lambda event: passes.append(event.done))
    assert passes == [8]
    assert sl.scan(tiny, folder, batch=3).path == first.path
    images.write(smooth(side=24), folder / "odd" / "new.png")
    assert sl.scan(tiny, folder).path != first.path
    with pytest.raises(sl.SightlineError, match="built in code"):
        first.model()


def test_cache_path_changes_with_all_but_the_batch_size(tiny: sl.Model, photos: Path) -> None:
    description = describe_scan(
        tiny, open_dataset(photos), None, ("penultimate",), 5, size=(32, 32), batch_size=32
    )
    path = make_store_path(description)
    assert path.name.startswith(f"{photos.name}-")
    assert make_store_path(replace(description, batch_size=4)) == path
    changes: list[dict[str, Any]] = [
        {"k": 6},
        {"sample_size": 8},
        {"class_k": 2},
        {"vector_lengths": {}},
        {"network": replace(description.network, mean=(0.5, 0.5, 0.4))},
        {"dataset": replace(description.dataset, sha256="0")},
    ]
    paths = {make_store_path(replace(description, **change)) for change in changes}
    assert len(paths | {path}) == len(changes) + 1


def test_description_is_of_the_network_and_the_dataset(wide: sl.Model, photos: Path) -> None:
    dataset = open_dataset(photos)
    description = describe_scan(
        wide,
        dataset,
        ["conv2", "last_conv", "logits"],
        ["conv1"],
        None,
        size=(64, 64),
        batch_size=8,
    )
    assert {name: layer.map_shape for name, layer in description.layers.items()} == {
        "conv2": (16, 21),
        "relu2": (16, 21),
        "logits": (1, 1),
    }
    assert description.unit_count == 10 + 10 + 5
    assert description.vector_lengths == {"conv1": 6}
    assert description.k == 25
    assert description.class_k == 5
    assert description.network.size == (64, 64)
    assert description.dataset.count == PHOTO_COUNT
    assert description.class_names == ("even", "odd")
    few = describe_scan(wide, dataset, None, [], 1, size=(64, 64), batch_size=8)
    assert few.k == 1


def test_many_classes_keep_fewer_images(
    wide: sl.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(max_entries: int) -> int:
        monkeypatch.setattr(run, "MAX_CLASS_ENTRIES", max_entries)
        dataset = open_dataset(photos)
        return describe_scan(wide, dataset, None, [], 5, size=(32, 32), batch_size=8).class_k

    # 16 units × 2 classes
    assert [describe(entries) for entries in (31, 32, 95, 96, 159, 160, 1000)] == [
        1, 1, 2, 3, 4, 5, 5,
    ]  # fmt: skip


# ── responses ──


def test_a_store_without_responses_is_that_of_earlier_versions(
    tiny: sl.Model, photos: Path, tmp_path: Path
) -> None:
    """It serves whoever needs no responses, and says what to do to those who do."""
    path = tmp_path / "old.scan"
    old = sl.scan(tiny, photos, store=path, responses=False, **OPTIONS)
    assert "responses" not in json.loads((path / "scan.json").read_text(encoding="utf-8"))
    assert not [name for name in open_table(path, "images").schema.names if "response" in name]
    assert not old.has_responses
    assert summarize_store(path)["responses"] == []
    assert verify_store(path) == []

    def fail(event: run.Passing) -> None:
        raise AssertionError("nothing remains to be done")

    for responses in (None, False):
        scan = sl.scan(tiny, photos, store=path, responses=responses, callback=fail, **OPTIONS)
        assert torch.equal(scan.vectors(), old.vectors())
    with pytest.raises(sl.SightlineError, match="made without responses, which need another pass"):
        sl.scan(tiny, photos, store=path, responses=True, **OPTIONS)
    with pytest.raises(sl.SightlineError, match=r"old.scan was made without responses: scan again"):
        scan.responses("conv1")


def test_an_unfinished_store_goes_on_as_it_began(
    tiny: sl.Model, photos: Path, tmp_path: Path
) -> None:
    for began_with, goes_on_with in ((False, None), (True, False)):
        options: dict[str, Any] = {"store": tmp_path / f"{began_with}.scan", **OPTIONS}
        sl.scan(
            tiny, photos, responses=began_with, callback=lambda event: event.done >= 16, **options
        )
        if not began_with:
            with pytest.raises(sl.SightlineError, match="made without responses"):
                sl.scan(tiny, photos, responses=True, **options)
        scan = sl.scan(tiny, photos, responses=goes_on_with, **options)
        assert scan.complete
        assert scan.has_responses == began_with
        assert verify_store(scan.path) == []


def test_means_over_positions(wide: sl.Model, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "means.scan"
    scan = sl.scan(wide, photos, store=path, mean_responses=True, **OPTIONS)
    means = scan.responses("conv2", kind="mean")
    np.testing.assert_allclose(means, scan.vectors("conv2").numpy(), rtol=6e-4, atol=1e-6)
    assert (scan.responses("conv2") >= means).all()
    assert verify_store(path) == []
    with pytest.raises(sl.SightlineError, match="mean_responses needs responses"):
        sl.scan(wide, photos, store=path, responses=False, mean_responses=True)
    plain = sl.scan(wide, photos, store=tmp_path / "plain.scan", **OPTIONS)
    np.testing.assert_array_equal(plain.responses("conv1"), scan.responses("conv1"))
    with pytest.raises(sl.SightlineError, match="made without mean responses: scan again"):
        plain.responses("conv1", kind="mean")
    with pytest.raises(sl.SightlineError, match="made without mean responses, which need"):
        sl.scan(wide, photos, store=tmp_path / "plain.scan", mean_responses=True, **OPTIONS)


def test_responses_beyond_float16_are_its_largest_number(photos: Path, tmp_path: Path) -> None:
    network = small_network()
    with torch.no_grad():
        network[0].weight.mul_(1e6)  # type: ignore[operator]
        network[0].bias.zero_()  # type: ignore[operator]
    model = sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=32)
    scan = sl.scan(model, photos, store=tmp_path / "large.scan", **OPTIONS)
    exact = scan.sample("conv1")  # of all images
    responses = scan.responses("conv1")
    assert exact.values.max() > 65504
    assert responses.max() == np.float16(65504)
    expected = np.clip(exact.values.numpy(), -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(np.take_along_axis(responses, exact.ids.numpy(), 0), expected)
    assert verify_store(scan.path) == []


def test_an_older_cache_goes_on_serving(
    tiny: sl.Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    old = sl.scan(tiny, photos, responses=False)
    assert sl.scan(tiny, photos).path == old.path
    new = sl.scan(tiny, photos, responses=True)
    assert new.path != old.path
    assert new.has_responses
    assert sl.scan(tiny, photos).path == new.path
    assert sl.scan(tiny, photos, responses=False).path == old.path


def test_memory_holds_few_rows_of_many_responses(
    whole: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = whole.description.unit_count
    monkeypatch.setattr(run, "MAX_BUFFERED_BYTES", 2 * units * 7 + 1)
    assert run.limit_buffered_rows(whole.description) == 7
    both = replace(whole.description, response_kinds=("max", "mean"))
    assert run.limit_buffered_rows(both) == 3
    bare = replace(both, response_kinds=())
    monkeypatch.setattr(run, "MAX_BUFFERED_BYTES", run.MAX_BUFFERED_ROWS)
    assert run.limit_buffered_rows(bare) == run.MAX_BUFFERED_ROWS


def test_refusals(tiny: sl.Model, whole: sl.Scan, photos: Path, tmp_path: Path) -> None:
    def refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(sl.SightlineError, match=message) as caught:
            sl.scan(*arguments, **options)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "text.jpg").write_text("words", encoding="utf-8")
    refused("there are no images in .*empty", tiny, tmp_path / "empty", store=tmp_path / "a.scan")
    refused(
        "none of the 1 files could be read; the first: text.jpg: ",
        tiny,
        tmp_path / "broken",
        store=tmp_path / "b.scan",
    )
    refused("k is 45; the dataset has 44 images", tiny, photos, k=45)
    refused("k is 0; it must lie between 1 and 44", tiny, photos, k=0)
    refused("batch is 0; it must lie between 1 and 4096", tiny, photos, batch=0)
    refused("batch is 4097; it must lie between 1 and 4096", tiny, photos, batch=4097)
    refused("no engine named 'rey'; did you mean ray", tiny, photos, engine="rey")
    refused("no layer named 'conv9'", tiny, photos, layers=["conv9"])
    refused("there is no folder, list or archive", tiny, tmp_path / "absent")
    refused("exists and is no store", tiny, photos, store=photos)
    refused("can't write", tiny, photos, store="/proc/sightline.scan")
    options: dict[str, Any] = {**OPTIONS, "store": whole.path}
    refused("was made with another k \\(5, now 6\\)", tiny, photos, **{**options, "k": 6})
    refused("another dataset, or its files have changed", tiny, [whole.paths[0]] * 44, **options)
    changed = small_network()
    with torch.no_grad():
        changed[0].bias += 1  # type: ignore[operator]
    kind = {"mean": (0.5, 0.5, 0.5), "labels": LABELS, "size": 32}
    changed_model = sl.load(changed, std=(0.25, 0.25, 0.25), **kind)
    refused("other weights of Sequential", changed_model, photos, **options)
    darker_model = sl.load(small_network(), std=(0.2, 0.2, 0.2), **kind)
    refused("another preprocessing", darker_model, photos, **options)


def test_cluster_needs_its_extra(
    tiny: sl.Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        sl.SightlineError,
        match=r"--engine ray needs the extra «cluster» .*; pip install 'sightline\[cluster\]'",
    ):
        sl.scan(tiny, photos, store=tmp_path / "a.scan", engine="ray")


# ── what files can be ──


def test_every_bad_input_is_an_error_or_an_image(
    tiny: sl.Model, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for path in (data / "badinputs").iterdir():
        (tmp_path / "photos" / path.name).symlink_to(path)
    (tmp_path / "photos" / "dangling.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    reasons = {Path(path).name: reason for path, reason in scan.errors}
    broken = {
        "bomb_30000x30000.png",
        "dangling.jpg",
        "empty.png",
        "float32_nan.tiff",
        "html.png",
        "lying_header_60000x60000.png",
        "pipe.jpg",
        "text.jpg",
        "truncated.jpg",
        "truncated_header.jpg",
    }
    assert broken <= set(reasons) <= {*broken, "corrupt_scan.jpg"}
    assert "No such file" in reasons["dangling.jpg"]
    assert scan.images + len(scan.errors) == scan.done
    sizes = {
        Path(path).name: tuple(size)
        for path, size in zip(scan.paths, scan.sizes.tolist(), strict=True)
    }
    for name in ("exif_rotated_6.jpg", "cmyk.jpg", "thin_3000x2.png"):
        assert sizes[name] == tuple(images.read(data / "badinputs" / name).shape[-2:])
    names = [Path(path).name for path in scan.paths]
    for name in (
        "exif_rotated_6.jpg",
        "cmyk.jpg",
        "gray16.png",
        "la.png",
        "palette_transparent.png",
    ):
        fitted = tiny.fit(images.read(data / "badinputs" / name))
        assert (scan.image(names.index(name)) - fitted).abs().mean() < 2 / 255


def test_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    noise = Image.effect_noise((1600, 1200), 60).convert("RGB")
    noise.resize((400, 300)).resize((1600, 1200)).save(tmp_path / "big.jpg", quality=95)
    square = fit_center_crop((tmp_path / "big.jpg").read_bytes(), 64, 64)
    resized = resize_short_side(images.read(tmp_path / "big.jpg"), 64)
    assert (square.height, square.width) == (1200, 1600)
    assert (stack_crops([square]) - crop_center(resized, 64, 64)).abs().mean() < 0.01


# ── the same weights in another network ──


def make_activated(activation: nn.Module) -> sl.Model:
    """Networks of the same weights with different activations; all are called `Sequential`."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 6, 3), activation, nn.Conv2d(6, 7, 3), activation]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5))
    return sl.load(network, size=32)


def test_the_cache_tells_networks_apart_that_have_the_same_weights(photos: Path) -> None:
    scans = [sl.scan(make_activated(each), photos, k=3) for each in (nn.ReLU(), nn.Tanh())]
    assert scans[0].path != scans[1].path
    for scan, activation in zip(scans, (nn.ReLU(), nn.Tanh()), strict=True):
        model = make_activated(activation)
        image = stack_crops(
            [fit_center_crop(Path(path).read_bytes(), 32, 32) for path in scan.paths]
        )
        with torch.no_grad():
            peaks = model.features(image, ["2"])["2"].flatten(2).max(2).values
        torch.testing.assert_close(
            scan.top("2").values, peaks.sort(0, descending=True).values[:3], rtol=1e-4, atol=1e-5
        )
        # The next scan of each finds its own.
        assert sl.scan(model, photos, k=3).path == scan.path


def test_a_store_of_the_same_weights_in_another_network_is_refused(
    photos: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.scan"
    scan = sl.scan(make_activated(nn.ReLU()), photos, store=store)
    scan.require(make_activated(nn.ReLU()))
    other = make_activated(nn.Tanh())
    for ask in (
        lambda: sl.scan(other, photos, store=store),
        lambda: scan.require(other),
        lambda: sl.neighbors(other, smooth(1), store=store, k=2),
    ):
        with pytest.raises(sl.SightlineError, match="that computes something else: features of"):
            ask()
    assert scan.measure_difference(make_activated(nn.ReLU())) < 1e-5


def test_networks_that_can_not_be_compared_are_taken_at_their_weights(
    photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for path in sorted(photos.rglob("*.png"))[:2] or sorted(photos.rglob("*.jpg"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    scan = sl.scan(make_activated(nn.ReLU()), folder, store=tmp_path / "a.scan", k=1)
    for path in folder.iterdir():
        path.unlink()
    assert scan.measure_difference(make_activated(nn.Tanh())) == 0
