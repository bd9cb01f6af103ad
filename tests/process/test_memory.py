"""Freed memory is kept for the next pass, unless the user has chosen otherwise."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from sightline.process.memory import keep_freed_memory

PASSES = """
import resource
import torch
import sightline as sl

torch.set_num_threads(1)
layers = [torch.nn.Conv2d(3, 16, 3, padding=1)]
layers += [torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1)] * 4
model = sl.load(torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
image = torch.rand(4, 3, 160, 224)
with torch.no_grad():
    for _ in range(3):
        model.run(image, ["logits"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        model.run(image, ["logits"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def count_page_faults(**settings: str) -> int:
    """How many pages the system hands out for a pass of a network, in a process of its own."""
    environment = {**os.environ, **settings}
    command = [sys.executable, "-c", PASSES]
    finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(finished.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_pass_reuses_the_memory_of_the_one_before() -> None:
    # A feature map takes 2,240 pages of 4 KiB.
    assert count_page_faults() < 500
    assert count_page_faults(MALLOC_TRIM_THRESHOLD_="131072") > 2_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGHTLINE_PORTABLE", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_the_users_choice_goes_first(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was asked"))
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory.__wrapped__()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without the setting
    assert not keep_freed_memory.__wrapped__()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was asked"))
    assert not keep_freed_memory.__wrapped__()
