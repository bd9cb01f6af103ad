"""Several at once: readers don't wait, writers do, and no lock outlives a fork."""

import os
import pickle
import signal
import tarfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import folder_of, smooth
from torch.utils.data import ConcatDataset, DataLoader

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.scan import run
from sightline.data.store.maintenance import compact_store, verify_store
from sightline.data.store.memory import MemoryStore
from sightline.data.writer_lock import lock_folder
from sightline.images.decode.center_crop import fit_center_crop
from sightline.images.decode.memory import DECODING_BUDGET, MemoryBudget

COUNT = 8  # photographs, one of them broken

OPTIONS: dict[str, Any] = {"batch": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("photos"), COUNT)


@pytest.fixture
def store(tiny: sl.Model, photos: Path, tmp_path: Path) -> Path:
    """A complete store."""
    return sl.scan(tiny, photos, store=tmp_path / "a.scan", **OPTIONS).path


# ── readers and writers ──


def test_a_complete_store_is_read_while_it_is_locked(
    store: Path, tiny: sl.Model, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is this thread's own: who waited for it here would wait for ever."""
    with lock_folder(store):
        assert sl.scan(tiny, photos, store=store, **OPTIONS).complete
        assert sl.neighbors(tiny, folder=photos, id=2, k=2, store=store).values["ids"].shape == (
            1,
            2,
        )
        assert verify_store(store) == []
    assert caplog.records == []


def test_scans_at_once_are_one_scan(
    tiny: sl.Model,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first runs, the others wait and find that there is nothing left to do."""
    begun = threading.Event()
    passes: list[int] = []
    run_scan_pass = run.run_scan_pass

    def count_pass(*arguments: Any, **options: Any) -> None:
        passes.append(threading.get_ident())
        begun.set()
        run_scan_pass(*arguments, **options)

    monkeypatch.setattr(run, "run_scan_pass", count_pass)

    def scan_photos(number: int) -> tuple[int, bool]:
        if number:
            begun.wait(30)
        scan = sl.scan(tiny, photos, store=tmp_path / "a.scan", **OPTIONS)
        return scan.images, scan.complete

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(scan_photos, range(4))) == [(COUNT - 1, True)] * 4
    assert len(passes) == 1
    messages = {record.getMessage() for record in caplog.records}
    assert all(message.startswith(f"waiting for process {os.getpid()} on ") for message in messages)
    assert len(messages) <= 1
    assert verify_store(tmp_path / "a.scan") == []


def test_scans_into_memory_at_once_are_one_scan(tiny: sl.Model, photos: Path) -> None:
    store = MemoryStore()
    with ThreadPoolExecutor(3) as pool:
        scans = list(pool.map(lambda _: sl.scan(tiny, photos, store=store, **OPTIONS), range(3)))
    assert [scan.images for scan in scans] == [COUNT - 1] * 3


def test_reading_while_another_compacts(store: Path) -> None:
    stopped = threading.Event()

    def compact_often() -> None:
        while not stopped.is_set():
            compact_store(store)

    thread = threading.Thread(target=compact_often)
    thread.start()
    try:
        for _ in range(15):
            scan = sl.Scan.open(store)
            assert len(scan.paths) == COUNT - 1
            assert scan.vectors().isfinite().all()
            assert len(scan.thumbnail_bytes([0, 5])) == 2
            assert len(scan.errors) == 1
    finally:
        stopped.set()
        thread.join()


# ── forks ──


class SlowDataset:
    """Images whose first one takes until it is told to end."""

    def __init__(self) -> None:
        self.is_slow = False
        self.begun = threading.Event()
        self.end = threading.Event()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, position: int) -> torch.Tensor:
        if self.is_slow and position == 0:
            self.begun.set()
            self.end.wait(30)
        return smooth(seed=position)[0]


def run_in_fork(check: Callable[[], bool]) -> int:
    """The status of a forked process that runs a check: 0 if it is true, and 14 if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lancedb, and of Python: this process has threads
        process_id = os.fork()
    if process_id == 0:
        signal.alarm(20)
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(process_id, 0)
    return status


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system knows no fork")
def test_a_fork_while_a_thread_reads_does_not_hang() -> None:
    slow = SlowDataset()
    dataset = open_dataset(slow)
    slow.is_slow = True
    thread = threading.Thread(target=dataset.read_image, args=(0,))
    thread.start()
    assert slow.begun.wait(30)
    try:
        assert run_in_fork(lambda: dataset.read_image(1).shape == (3, 32, 32)) == 0
    finally:
        slow.end.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system knows no fork")
def test_a_fork_while_a_thread_writes_a_store(store: Path, tiny: sl.Model, photos: Path) -> None:
    """The fork can read, and is not taken for the thread that writes."""
    memory_store = MemoryStore()
    description = sl.scan(tiny, photos, store=memory_store, **OPTIONS).description
    locked = threading.Event()
    end = threading.Event()

    def hold_stores() -> None:
        with memory_store.open_writer(description), lock_folder(store):
            locked.set()
            end.wait(30)

    thread = threading.Thread(target=hold_stores)
    thread.start()
    assert locked.wait(30)

    def read_and_write() -> bool:
        with memory_store.open_writer(description) as writer:
            is_complete = writer.progress.complete
        return is_complete and len(sl.Scan.open(store).reader.description.layers) == 3

    try:
        assert run_in_fork(read_and_write) == 0
    finally:
        end.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system knows no fork")
def test_forks_while_threads_decode(photos: Path) -> None:
    """In a fork nobody would give back what the threads of the parent hold of the budget."""
    data = next(photos.rglob("001.jpg")).read_bytes()
    expected = fit_center_crop(data, 16, 16).pixels
    end = threading.Event()

    def decode_often() -> None:
        while not end.is_set():
            fit_center_crop(data, 16, 16)

    def hold_everything() -> None:
        with DECODING_BUDGET.reserve_bytes(DECODING_BUDGET.total_bytes):
            held.set()
            end.wait(30)

    threads = [threading.Thread(target=decode_often) for _ in range(3)]
    held = threading.Event()
    try:
        for thread in threads:
            thread.start()
        for _ in range(10):
            assert run_in_fork(lambda: decode_and_check_budget(data, expected)) == 0
        threads.append(threading.Thread(target=hold_everything))
        threads[-1].start()
        assert held.wait(30)
        assert run_in_fork(lambda: decode_and_check_budget(data, expected)) == 0
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert DECODING_BUDGET.free_bytes == DECODING_BUDGET.total_bytes


def decode_and_check_budget(data: bytes, expected: Any) -> bool:
    """Whether a picture is decoded as expected, and all bytes are free before and after."""
    is_same = bool((fit_center_crop(data, 16, 16).pixels == expected).all())
    return is_same and DECODING_BUDGET.free_bytes == DECODING_BUDGET.total_bytes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system knows no fork")
def test_a_fork_by_the_thread_that_holds_bytes() -> None:
    """They are given back once in each process."""
    budget = MemoryBudget(100)

    def leave_block() -> bool:
        was_free = budget.free_bytes == 100
        reservation.__exit__(None, None, None)
        return was_free and budget.free_bytes == 100

    reservation = budget.reserve_bytes(60)
    with reservation:
        assert run_in_fork(leave_block) == 0
        assert budget.free_bytes == 40
    assert budget.free_bytes == 100


# ── torch's DataLoader ──


def write_datasets(folder: Path, photos: Path) -> list[Any]:
    """The same pictures in every form that can be read in another process."""
    files = [path for path in sorted(photos.rglob("*.jpg")) if path.name != "004.jpg"]
    with tarfile.open(folder / "a.tar", "w") as archive:
        for path in files:
            archive.add(path, path.name)
    table = pa.table({"image": [path.read_bytes() for path in files]})
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    lancedb.connect(folder).create_table("b", table)
    sources: list[Any] = [files, folder / "a.tar", folder / "a.parquet", folder / "b.lance"]
    return [open_dataset(source) for source in sources]


def test_datasets_can_be_sent_to_workers(photos: Path, tmp_path: Path) -> None:
    for dataset in write_datasets(tmp_path, photos):
        image = dataset.read_image(3)
        assert pickle.loads(pickle.dumps(dataset))[3] == image


@pytest.mark.skipif(
    "SIGHTLINE_HOSTILE_EXAMPLES" not in os.environ,
    reason="starting a process takes long; SIGHTLINE_HOSTILE_EXAMPLES=1 runs it",
)
def test_datasets_are_read_in_spawned_workers(photos: Path, tmp_path: Path) -> None:
    datasets = write_datasets(tmp_path, photos)
    expected = [
        dataset.read_image(position) for dataset in datasets for position in range(COUNT - 1)
    ]
    loader = DataLoader(
        ConcatDataset(datasets),
        batch_size=4,
        num_workers=1,
        collate_fn=list,  # the files have different lengths
        multiprocessing_context="spawn",
    )
    assert [item for batch in loader for item in batch] == expected
