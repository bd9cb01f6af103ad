"""Too little memory is refused in one line.

The tasks run in a process of their own, this file as a script, which forks a child with a limit for
each: a process that has run other tests has memory to spare.
"""

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sightline as sl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits the memory")


METHODS = ("saliency", "occlusion", "deepdream")


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


def run_tasks(folder: Path) -> dict[str, str]:
    """The answers of all tasks by name."""
    torch.set_num_threads(1)
    path = folder / "transparent.png"  # 12 megapixels, in few bytes
    Image.new("RGBA", (4000, 3000), (9, 8, 7, 100)).save(path, compress_level=1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    )
    model = sl.load(network, size=32)
    image = torch.rand(1, 3, 1000, 1000, generator=torch.Generator().manual_seed(0))
    model.findings  # noqa: B018 - found before there is a limit
    # The tensor has 144 MB, the picture 48, a band of 4 megapixels a few times 64.
    answers = {
        "read": run_limited(700_000_000, lambda: sl.read(path)),
        "read too little": run_limited(30_000_000, lambda: sl.read(path)),
    }
    for name in METHODS:
        method: Any = getattr(sl, name)
        answers[name] = run_limited(20_000_000, lambda method=method: method(model, image))
    return answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("memory")
    command = [sys.executable, __file__, str(folder)]
    completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(completed.stdout.splitlines()[-1])


def test_reading_takes_no_more_than_the_picture_and_a_band(answers: dict[str, str]) -> None:
    assert answers["read"] == "done"


def test_reading_with_too_little_memory(answers: dict[str, str]) -> None:
    assert answers["read too little"].startswith("transparent.png: not enough memory")
    assert "\n" not in answers["read too little"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_with_too_little_memory(name: str, answers: dict[str, str]) -> None:
    assert "lower" in answers[name]
    assert not answers[name].startswith("raw")
    assert "\n" not in answers[name]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_tasks(Path(sys.argv[1]))))
