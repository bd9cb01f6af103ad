"""A lock is free in a forked process and after pickling, whoever held it."""

import os
import pickle
import sys
import threading

import pytest

from sightline.process.locks import ForkSafeCleanup, ForkSafeLock


def is_free(lock: ForkSafeLock) -> bool:
    """Whether another thread gets the lock within a moment."""
    taken = threading.Event()

    def take_lock() -> None:
        with lock:
            taken.set()

    threading.Thread(target=take_lock, daemon=True).start()
    return taken.wait(0.2)


def test_one_thread_at_a_time() -> None:
    lock = ForkSafeLock()
    with lock:
        assert not is_free(lock)
    assert is_free(lock)


def test_an_error_in_the_block_frees_it() -> None:
    lock = ForkSafeLock()
    with pytest.raises(ValueError, match="failed"), lock:
        raise ValueError("failed")
    assert is_free(lock)


def test_a_pickled_lock_is_another_and_free() -> None:
    lock = ForkSafeLock()
    with lock:
        other = pickle.loads(pickle.dumps(lock))
        assert is_free(other)
        assert not is_free(lock)


def test_after_a_fork_it_is_free_and_the_block_ends_well() -> None:
    lock = ForkSafeLock()
    with lock:
        lock.reset_after_fork()  # what a forked process does
    assert is_free(lock)
    with lock:
        assert not is_free(lock)


@pytest.mark.skipif(sys.platform != "linux", reason="forks are tried on Linux only")
def test_a_forked_process_does_not_wait() -> None:
    lock = ForkSafeLock()
    with lock:
        child = os.fork()
        if child == 0:
            with lock:
                os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_what_a_thread_changed_for_a_while_is_undone_after_a_fork() -> None:
    events: list[str] = []
    with ForkSafeCleanup() as cleanup:
        cleanup.callback(events.append, "first")
        cleanup.callback(events.append, "last")
        cleanup.reset_after_fork()  # what a forked process does
        assert events == ["last", "first"]
    assert events == ["last", "first"]
