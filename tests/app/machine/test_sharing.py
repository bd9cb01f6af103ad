"""Commands leave processors to each other, and the user's own settings stay."""

import os
from pathlib import Path

import pytest

from sightline.app.machine import sharing
from sightline.app.machine.sharing import count_available_processors, count_threads, share_machine


def test_threads_wait_passively_and_the_users_choice_stays() -> None:
    environment: dict[str, str] = {}
    share_machine(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    kept = dict(chosen)
    share_machine(kept)
    assert kept == chosen


@pytest.mark.parametrize("name", ["MKL_NUM_THREADS", "OMP_THREAD_LIMIT"])
def test_other_choices_of_threads_count_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "count_available_processors", lambda: 0)
    environment = {name: "3"}
    share_machine(environment)
    assert "OMP_NUM_THREADS" not in environment


def test_threads_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(sharing, "count_available_processors", lambda: 3)
    environment: dict[str, str] = {}
    share_machine(environment)
    assert environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("quota", "count"),
    [("300000 100000", 3), ("250000 100000", 2), ("20000 100000", 1), ("max 100000", 8), ("", 8)],
)
def test_a_containers_quota(
    quota: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(quota, encoding="ascii")
    assert count_available_processors(file) == count
    assert count_available_processors(tmp_path / "absent") == 8


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 5),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "many"}, 5),
    ],
)
def test_threads_are_the_fewest_that_were_chosen_or_processors(
    environment: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "count_available_processors", lambda: 5)
    assert count_threads(environment) == count
