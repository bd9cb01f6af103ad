"""The pass and its store: against a brute-force full pass, killed and gone on, refused, read back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import COUNT, LABELS, ROOT, folder_of, small_network, smooth
from PIL import Image
from torch import Tensor

import sightline as sl
from sightline.data.scan import run as stream
from sightline.data.store import writer as writing
from sightline.data.store.maintenance import compact_store, summarize_store, verify_store
from sightline.data.store.reader import open_store_table
from sightline.images import io as images
from sightline.images.decode import fit_square, stack_squares


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tests scan."""
    return folder_of(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def found(tiny: sl.Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A whole scan of it."""
    return sl.scan(
        tiny,
        folder,
        store=tmp_path_factory.mktemp("stores") / "whole.scan",
        batch=8,
        k=5,
        vectors=("penultimate", "conv2"),
    )


def everything(found: sl.Scan) -> list[Tensor]:
    """All numbers of a store."""
    numbers = [*found.top5, found.sizes, found.vectors()]
    for layer in found.layers:
        numbers += [
            part
            for held in (found.top(layer), found.sample(layer), found.class_top(layer))
            for part in held
            if part is not None
        ]
        numbers.append(found.class_means(layer))
    return numbers


def same(one: sl.Scan, other: sl.Scan) -> bool:
    """Whether two stores hold the same to the last bit."""
    told = one.paths == other.paths and one.errors == other.errors
    pairs = zip(everything(one), everything(other), strict=True)
    return told and all(torch.equal(a, b) for a, b in pairs)


def test_equals_a_full_pass(tiny: sl.Model, found: sl.Scan) -> None:
    fed = torch.cat([tiny.fit(images.read(path)) for path in found.paths])
    fed = (fed * 255).round() / 255  # the pass feeds 8-bit pixels
    assert (
        stack_squares([fit_square(Path(path).read_bytes(), 32, 32) for path in found.paths]) - fed
    ).abs().max() < 1.01 / 255
    fed = stack_squares([fit_square(Path(path).read_bytes(), 32, 32) for path in found.paths])
    with torch.no_grad():
        wanted = tiny.features(fed, ["conv1", "conv3", "penultimate", "logits", "conv2"])
    torch.testing.assert_close(found.vectors(), wanted["penultimate"])
    torch.testing.assert_close(found.vectors("conv2"), wanted["conv2"].mean((2, 3)))
    torch.testing.assert_close(
        found.top5[1], wanted["logits"].softmax(1).sort(1, descending=True).values[:, :5]
    )
    for layer in ("conv1", "conv3"):
        peaks = wanted[layer].flatten(2).max(2).values
        values, ids, positions = found.top(layer)
        torch.testing.assert_close(values, peaks.sort(0, descending=True).values[:5])
        torch.testing.assert_close(peaks.gather(0, ids), values)
        units = torch.arange(ids.shape[1]).expand_as(ids)
        assert positions is not None
        torch.testing.assert_close(
            wanted[layer][ids, units, positions[..., 0], positions[..., 1]], values
        )
        sample = found.sample(layer)
        torch.testing.assert_close(peaks.gather(0, sample.ids), sample.values)
        torch.testing.assert_close(
            sample.quantiles, peaks.quantile(torch.linspace(0, 1, 11), 0)
        )  # all images fit into the sample
        assert found.classes is not None
        for label in (0, 1):
            mine = peaks[found.classes == label]
            torch.testing.assert_close(
                found.class_top(layer).values[label], mine.sort(0, descending=True).values[:5]
            )
            torch.testing.assert_close(found.class_means(layer)[label], mine.mean(0))


def test_what_a_store_tells(found: sl.Scan, folder: Path) -> None:
    assert (found.images, found.complete, found.layers) == (
        COUNT - 1,
        True,
        ["conv1", "conv2", "conv3"],
    )
    assert found.class_names == ["even", "odd"]
    assert found.classes is not None
    assert found.classes.tolist() == [0] * 21 + [1] * 22
    assert [path for path, _ in found.errors] == [str(folder / "even" / "004.jpg")]
    assert found.errors[0][1].endswith("it looks like text")
    assert found.sizes.tolist() == [[40, 40]] * 43
    assert found.thumbnail(3).shape == (1, 3, 32, 32)
    assert (found.thumbnail(3) - found.image(3)).abs().mean() < 0.03
    assert [len(data) > 100 for data in found.thumbnail_bytes([5, 0])] == [True, True]
    assert found.model_labels == list(LABELS)
    told = summarize_store(found.path)
    assert (told["images"], told["errors"], told["model"], list(told["layers"])) == (
        43,
        1,
        "Sequential",
        found.layers,
    )
    assert verify_store(found.path) == []
    with pytest.raises(
        sl.SightlineError,
        match=r"no layer in the store whole.scan named 'conv4'; did you mean conv3",
    ):
        found.top("conv4")
    with pytest.raises(sl.SightlineError, match="id is 43; it must lie between 0 and 42"):
        found.thumbnail(43)


def test_stopped_and_gone_on_is_the_same(
    tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "store": tmp_path / "parts.scan",
        "batch": 8,
        "k": 5,
        "vectors": ("penultimate", "conv2"),
    }
    first = sl.scan(tiny, folder, callback=lambda _: True, **options)
    assert (first.images, first.complete, first.done) == (7, False, 8)
    assert len(first.vectors()) == 7
    second = sl.scan(tiny, folder, callback=lambda event: event.done >= 24, **options)
    assert second.done == 24
    assert same(sl.scan(tiny, folder, **options), found)
    before, after = compact_store(tmp_path / "parts.scan")
    assert after <= before
    assert same(sl.Scan.open(tmp_path / "parts.scan"), found)


PROGRAM = """
import resource, sys, time
sys.path.insert(0, {tests!r})
from helpers import small_network, LABELS
import sightline as sl
from sightline.data.scan import run as stream
stream.MIN_COMMIT_SECONDS, stream.MAX_COMMIT_SHARE = 0.0, 1e9
model = sl.load(small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32)
def tell(event):
    print(event.done, flush=True)
    time.sleep(0.05)
def scan(store):
    sl.scan(model, {folder!r}, store=store, batch=8, k=5, vectors=("penultimate", "conv2"), callback=tell)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    scan({small!r})
except sl.SightlineError as error:
    print(error if "ray" not in sys.modules else "Ray was imported", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
scan({killed!r})
"""


def test_in_a_process_of_its_own(
    tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path
) -> None:
    """Files that may not grow, then killed in the middle, both in one process, since starting it costs the most."""
    small, store = tmp_path / "small.scan", tmp_path / "killed.scan"
    program = PROGRAM.format(
        tests=str(ROOT / "tests"), folder=str(folder), small=str(small), killed=str(store)
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
        with (
            pytest.raises(
                sl.SightlineError, match=r"another scan is writing .*killed.scan; wait for it"
            ),
            writing.lock_store(store),
        ):
            pass
        child.send_signal(signal.SIGKILL)
    left = sl.Scan.open(store)
    assert 8 <= left.done < COUNT
    assert verify_store(store) == []
    assert same(
        sl.scan(tiny, folder, store=store, batch=8, k=5, vectors=("penultimate", "conv2")), found
    )


def test_rows_without_a_commit_are_removed(
    tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up between the rows and the state, at the second commit."""
    options: dict[str, Any] = {
        "store": tmp_path / "full.scan",
        "batch": 8,
        "k": 5,
        "vectors": ("penultimate", "conv2"),
    }
    sl.scan(tiny, folder, callback=lambda event: event.done >= 16, **options)
    monkeypatch.setattr(writing, "replace_atomically", full_disk)
    before = data_of(options["store"])
    with pytest.raises(
        sl.SightlineError,
        match=r"can't write .*full.scan: No space left on device; 15 images are kept",
    ):
        sl.scan(tiny, folder, **options)
    assert data_of(options["store"]) == before  # or each further attempt would need more room
    monkeypatch.undo()
    left = sl.Scan.open(tmp_path / "full.scan")
    assert (left.images, len(left.paths), verify_store(left.path)) == (15, 15, [])
    assert same(sl.scan(tiny, folder, **options), found)


def test_rows_go_to_the_disk_between_commits(
    tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory does not grow with the speed; what waits on the disk is not yet part of the store, and goes with a dead process."""
    options: dict[str, Any] = {
        "store": tmp_path / "waiting.scan",
        "batch": 8,
        "k": 5,
        "vectors": ("penultimate", "conv2"),
    }
    monkeypatch.setattr(stream, "MAX_BUFFERED_ROWS", 10)
    monkeypatch.setattr(stream, "MIN_COMMIT_SECONDS", 1e9)

    def die(event: stream.Passing) -> None:
        if event.done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sl.scan(tiny, folder, callback=die, **options)
    left = sl.Scan.open(options["store"])
    assert (left.images, open_store_table(left.path, "images").count_rows()) == (0, 15)
    assert same(sl.scan(tiny, folder, **options), found)
    assert [
        writing.count_fragments(open_store_table(path, "images"))
        for path in (left.path, found.path)
    ] == [1, 1]


def data_of(store: Path) -> set[str]:
    """The files that hold a store's images."""
    return {path.name for path in (store / "images.lance" / "data").iterdir()}


def test_no_room_to_merge(
    tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "store": tmp_path / "full.scan",
        "batch": 8,
        "k": 5,
        "vectors": ("penultimate", "conv2"),
    }
    sl.scan(tiny, folder, callback=lambda event: event.done >= 16, **options)
    monkeypatch.setattr(writing, "iterate_row_batches", full_disk)
    scanned = sl.scan(tiny, folder, **options)
    assert scanned.complete
    assert len(data_of(scanned.path)) == 2
    with pytest.raises(
        sl.SightlineError,
        match=r"can't write .*full.scan: No space left on device; 43 images are kept",
    ):
        compact_store(scanned.path)
    assert same(scanned, found)
    monkeypatch.undo()
    compact_store(scanned.path)
    assert len(data_of(scanned.path)) == 1
    assert same(sl.Scan.open(scanned.path), found)


def full_disk(path: Path) -> Any:
    """What writing gives on a full disk."""
    raise OSError(28, os.strerror(28))


def test_cache_is_reused_until_something_changes(
    tiny: sl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = folder_of(tmp_path / "photos", 8)
    passes: list[int] = []
    for _ in range(2):
        first = sl.scan(tiny, photos, callback=lambda event: passes.append(event.done))
    assert passes == [8]
    images.write(smooth(side=24), photos / "odd" / "new.png")
    assert sl.scan(tiny, photos).path != first.path
    with pytest.raises(sl.SightlineError, match="built in code"):
        first.model()


def test_refusals(tiny: sl.Model, found: sl.Scan, folder: Path, tmp_path: Path) -> None:
    def refused(text: str, *given: Any, **options: Any) -> None:
        with pytest.raises(sl.SightlineError, match=text) as caught:
            sl.scan(*given, **options)
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
    refused("k is 45; the collection has 44 images", tiny, folder, k=45)
    refused("no engine named 'rey'; did you mean ray", tiny, folder, engine="rey")
    refused("no layer named 'conv9'", tiny, folder, layers=["conv9"])
    refused("there is no folder, list or archive", tiny, tmp_path / "absent")
    refused("exists and is no store", tiny, folder, store=folder)
    refused("can't write", tiny, folder, store="/proc/sightline.scan")
    options: dict[str, Any] = {
        "batch": 8,
        "k": 5,
        "vectors": ("penultimate", "conv2"),
        "store": found.path,
    }
    refused("was made with another k \\(5, now 6\\)", tiny, folder, **{**options, "k": 6})
    refused("another collection, or its files have changed", tiny, [found.paths[0]] * 44, **options)
    changed = small_network()
    with torch.no_grad():
        changed[0].bias += 1  # type: ignore[operator]
    kind = {"mean": (0.5, 0.5, 0.5), "labels": LABELS, "size": 32}
    refused(
        "other weights of Sequential",
        sl.load(changed, std=(0.25, 0.25, 0.25), **kind),
        folder,
        **options,
    )
    refused(
        "another preprocessing",
        sl.load(small_network(), std=(0.2, 0.2, 0.2), **kind),
        folder,
        **options,
    )


def test_cluster_needs_its_extra(
    tiny: sl.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        sl.SightlineError,
        match=r"--engine ray needs the extra «cluster» .*; pip install 'sightline\[cluster\]'",
    ):
        sl.scan(tiny, folder, store=tmp_path / "a.scan", engine="ray")


def test_broken_stores(found: sl.Scan, tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(sl.SightlineError, match=text):
            sl.Scan.open(tmp_path)

    refused("is no store; sightline scan makes one")
    (tmp_path / "scan.json").write_text("{", encoding="utf-8")
    refused("is damaged: scan.json")
    (tmp_path / "scan.json").write_text(json.dumps({**found.facts, "version": 2}), encoding="utf-8")
    refused("was made by a newer version \\(layout 2; this one reads 1\\)")
    (tmp_path / "scan.json").write_text(json.dumps(found.facts), encoding="utf-8")
    (tmp_path / "state.safetensors").write_bytes(b"123")
    refused("is damaged: state.safetensors")


def test_originals_that_changed(tiny: sl.Model, tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", 8)
    found = sl.scan(tiny, photos, store=tmp_path / "a.scan")
    images.write(smooth(side=24, seed=3), found.paths[0])
    Path(found.paths[1]).unlink()
    with pytest.raises(sl.SightlineError, match="has changed since the pass"):
        found.image(0)
    with pytest.raises(sl.SightlineError, match="can't be read any more \\(No such file"):
        found.image(1)


def test_every_bad_input_is_an_error_or_an_image(
    tiny: sl.Model, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for path in (data / "badinputs").iterdir():
        (tmp_path / "photos" / path.name).symlink_to(path)
    (tmp_path / "photos" / "dangling.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    found = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    reasons = {Path(path).name: reason for path, reason in found.errors}
    broken = {
        "bomb_30000x30000.png",
        "dangling.jpg",
        "empty.png",
        "float32_nan.tiff",
        "html.png",
        "lying_header_60000x60000.png",
    }
    broken |= {"pipe.jpg", "text.jpg", "truncated.jpg", "truncated_header.jpg"}
    assert broken <= set(reasons) <= {*broken, "corrupt_scan.jpg"}
    assert "No such file" in reasons["dangling.jpg"]
    assert found.images + len(found.errors) == found.done
    sizes = {
        Path(path).name: tuple(size)
        for path, size in zip(found.paths, found.sizes.tolist(), strict=True)
    }
    for name in ("exif_rotated_6.jpg", "cmyk.jpg", "thin_3000x2.png"):
        assert sizes[name] == tuple(images.read(data / "badinputs" / name).shape[-2:])
    for name in (
        "exif_rotated_6.jpg",
        "cmyk.jpg",
        "gray16.png",
        "la.png",
        "palette_transparent.png",
    ):
        fit = tiny.fit(images.read(data / "badinputs" / name))
        assert (
            found.image([Path(path).name for path in found.paths].index(name)) - fit
        ).abs().mean() < 2 / 255


def test_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    Image.effect_noise((1600, 1200), 60).convert("RGB").resize((400, 300)).resize(
        (1600, 1200)
    ).save(tmp_path / "big.jpg", quality=95)
    view = fit_square((tmp_path / "big.jpg").read_bytes(), 64, 64)
    whole = images.resize_short_side(images.read(tmp_path / "big.jpg"), 64)
    assert (view.height, view.width) == (1200, 1600)
    assert (stack_squares([view]) - images.crop_center(whole, 64, 64)).abs().mean() < 0.01
