"""Too little memory is refused in one line, in a child process with a limit of its own."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits the memory")


def run_limited(extra_bytes: int, task: Callable[[], object]) -> str:
    """What a forked child says that runs a task in little more memory than it has."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            task()
            sender.send("done")
        except sl.SightlineError as error:
            sender.send(str(error))
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            sender.send(f"raw {error!r}")

    process = context.Process(target=work)
    process.start()
    answer = receiver.recv() if receiver.poll(60) else "no answer"
    process.join(10)
    return answer


@pytest.fixture(scope="module")
def transparent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transparent PNG of 12 megapixels, in few bytes."""
    path = tmp_path_factory.mktemp("memory") / "transparent.png"
    Image.new("RGBA", (4000, 3000), (9, 8, 7, 100)).save(path, compress_level=1)
    return path


def test_reading_takes_no_more_than_the_picture_and_a_band(transparent_file: Path) -> None:
    # The tensor has 144 MB, the picture 48, a band of 4 megapixels a few times 64.
    answer = run_limited(700_000_000, lambda: sl.read(transparent_file))
    assert answer == "done"


def test_reading_with_too_little_memory(transparent_file: Path) -> None:
    answer = run_limited(30_000_000, lambda: sl.read(transparent_file))
    assert answer.startswith("transparent.png: not enough memory")
    assert "\n" not in answer


@pytest.mark.parametrize("name", ["saliency", "occlusion", "deepdream"])
def test_a_method_with_too_little_memory(name: str, tiny: sl.Model) -> None:
    image = smooth(side=1000)
    method: Any = getattr(sl, name)
    torch.set_num_threads(1)
    answer = run_limited(20_000_000, lambda: method(tiny, image))
    assert "lower" in answer
    assert not answer.startswith("raw")
    assert "\n" not in answer
