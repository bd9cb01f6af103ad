"""What the tests share: the pictures and networks of the data folder where there is one, and a
network and an image small enough for any test.
"""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# On arrays as small as the tests', two threads wait for each other longer than they work. Libraries
# read this when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from helpers import DATA, LABELS, small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.models.overrides.fast_operations import is_available
from sightline.models.tracing import incremental

torch.set_num_threads(1)

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leaves the half million objects of imported libraries out of garbage collections from now on.

    To look through them again and again takes a sixth of the tests' time.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At its end Python collects everything, and some libraries complain of what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test pictures, textures and network weights."""
    if not DATA.is_dir():
        pytest.skip(f"no test data in {DATA}; SIGHTLINE_DATA names another folder")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def follow_small_networks() -> Iterator[None]:
    """Occlusion follows the tests' networks, which it would run whole: they are that small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "MIN_GAIN", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for each test process: two that scan the same images into one store refuse each
    other.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny() -> sl.Model:
    """A small network as a Model."""
    return sl.load(
        small_network(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS, size=32
    )


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No fast operation of torch is available."""
    monkeypatch.setenv("SIGHTLINE_PORTABLE", "1")
    is_available.cache_clear()
    yield
    is_available.cache_clear()


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """A smooth random image, 1×3×32×32. Nobody may change it."""
    return smooth()
