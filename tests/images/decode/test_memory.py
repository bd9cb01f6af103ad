"""Threads that decode wait until the bytes that they need are free."""

import threading

import pytest

from sightline.images.decode.memory import MemoryBudget


def test_bytes_are_held_while_the_block_runs() -> None:
    budget = MemoryBudget(100)
    with budget.reserve_bytes(30):
        assert budget.free_bytes == 70
    assert budget.free_bytes == 100


def test_an_error_gives_the_bytes_back() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(ValueError, match="broken"), budget.reserve_bytes(60):
        raise ValueError("broken")
    assert budget.free_bytes == 100


def test_more_than_the_budget_takes_all_of_it() -> None:
    budget = MemoryBudget(100)
    with budget.reserve_bytes(1000):
        assert budget.free_bytes == 0
    assert budget.free_bytes == 100


@pytest.mark.parametrize(("wanted", "waits"), [(40, False), (41, True), (1000, True)])
def test_a_thread_waits_until_enough_is_free(wanted: int, waits: bool) -> None:
    budget = MemoryBudget(100)
    granted = threading.Event()

    def reserve() -> None:
        with budget.reserve_bytes(wanted):
            granted.set()

    thread = threading.Thread(target=reserve, daemon=True)
    with budget.reserve_bytes(60):
        thread.start()
        assert granted.wait(0.2) is not waits
    assert granted.wait(5)
    thread.join(5)
    assert budget.free_bytes == 100


def test_who_asks_for_everything_gets_its_turn_among_many() -> None:
    budget = MemoryBudget(100)
    end = threading.Event()

    def reserve_often() -> None:
        while not end.is_set():
            with budget.reserve_bytes(40):
                end.wait(0.001)

    threads = [threading.Thread(target=reserve_often, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    everything = threading.Event()

    def reserve_everything() -> None:
        with budget.reserve_bytes(1000):
            everything.set()

    threads.append(threading.Thread(target=reserve_everything, daemon=True))
    threads[-1].start()
    was_served = everything.wait(10)
    end.set()
    for thread in threads:
        thread.join(5)
    assert was_served
    assert budget.free_bytes == 100
