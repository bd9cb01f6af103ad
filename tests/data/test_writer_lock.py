"""One writer at a time; the next one says for whom it waits."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sightline.data import writer_lock
from sightline.data.writer_lock import lock_folder
from sightline.errors import SightlineError


def hold_lock(path: str, connection: Any) -> None:
    """Holds the lock of a folder until it is told to end."""
    with lock_folder(Path(path)):
        connection.send("locked")
        connection.recv()


def test_another_process_is_waited_for_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_lock, args=(str(tmp_path / "a"), there))
    process.start()
    try:
        assert here.recv() == "locked"
        release = threading.Timer(0.3, here.send, ["end"])
        release.start()
        with lock_folder(tmp_path / "a"):
            release.join()
    finally:
        process.join(30)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith(f"waiting for process {process.pid} on ")
    assert message.endswith(f", which writes {tmp_path}/a")


def test_another_thread_is_waited_for(tmp_path: Path) -> None:
    order: list[str] = []

    def write() -> None:
        with lock_folder(tmp_path):
            order.append("second")

    with lock_folder(tmp_path):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_this_thread_does_not_wait_for_itself(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(SightlineError, match="is being written by this thread already"),
        lock_folder(tmp_path),
    ):
        pass
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError  # and the lock is free again
    with lock_folder(tmp_path):
        assert not FileLock(tmp_path / "lock").is_locked


def test_an_odd_name_of_a_writer_is_shown_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writer").write_bytes(b"\x1b[31m\xff\n" + b"x" * 500)
    name = writer_lock._read_writer_name(tmp_path)
    assert name.startswith("\\x1b[31m\ufffd\\nxxx")
    assert len(name) < 120
    assert writer_lock._read_writer_name(tmp_path / "absent") == "another process"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(writer_lock.FileLock, "acquire", refuse)
    with pytest.raises(SightlineError, match=r"can't write .*: Read-only file system"):
        lock_folder(tmp_path).__enter__()
