"""Too little memory is refused in one line.

The tasks run in a process of their own, this file as a script, which forks a child with a limit for
each: a process that has run other tests has memory to spare.
"""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.store.memory import MemoryStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits the memory")


METHODS = ("saliency", "occlusion", "deepdream")

# Command lines, by what is short of memory, and the bytes beside those that there are anyway.
COMMANDS = {
    "style": ["style", "large.png", "great_wave", "--steps", "1", "--size", "1000"],
    "texture": ["texture", "photos/1.png", "--size", "64", "--side", "4000"],
    "synthesis": ["synthesis", "1", "--size", "2000", "--steps", "1"],
    "inversion": ["inversion", "large.png", "--size", "1000", "--steps", "1"],
    "stylizer": ["stylizer", "apply", "painters", "large.png"],
    "training": ["stylizer", "train", "large.png", "--folder", "photos", "--size", "512"],
    "again": ["again", "recipe/recipe.json"],
}
# Functions of test_images.py that make files which claim to be large.
CLAIMS = ("claim_png", "claim_deep_png", "claim_bmp", "claim_ppm", "claim_jpeg", "claim_tiff")
# Over a store in memory: LanceDB ends the process where it lacks memory.
OVER_DATASETS = ("scan", "neighbors", "embedding", "patches", "labels")


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
    answers |= read_claims(folder)
    return answers | run_commands(folder, image) | run_over_datasets(folder)


def read_claims(folder: Path) -> dict[str, str]:
    """The answers for files of a few bytes that claim 100 megapixels."""
    import test_images  # pyright: ignore[reportMissingImports] - it lies beside this script

    answers: dict[str, str] = {}
    for name in CLAIMS:
        path = folder / f"{name}.png"
        path.write_bytes(getattr(test_images, name)(9_999))
        answers[name] = run_limited(30_000_000, lambda path=path: sl.read(path))
    return answers


def run_commands(folder: Path, image: torch.Tensor) -> dict[str, str]:
    """The answers of the command line, which returns 1 where it lacks memory."""
    os.chdir(folder)
    sl.write(image, "large.png")
    sl.write(image[..., :300], "photos/1.png")
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["saliency", "large.png", "--samples", "1", "--size", "1000", "--out", "recipe"]
        main([*words, "--quiet"])

    def run_command(words: Sequence[str]) -> None:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(words)
        raise sl.SightlineError(f"{status} {errors.getvalue()}")

    return {
        name: run_limited(12_000_000, lambda words=words: run_command(words))
        for name, words in COMMANDS.items()
    }


def run_over_datasets(folder: Path) -> dict[str, str]:
    """The answers of a scan and of the methods that read one."""
    model = sl.load()
    for number in range(40):
        generator = torch.Generator().manual_seed(number)
        sl.write(torch.rand(1, 3, 40, 40, generator=generator), folder / f"scanned/{number}.png")
    store = MemoryStore()
    scan = sl.scan(model, folder / "scanned", store=store)
    answers = {
        "scan": run_limited(
            12_000_000,
            lambda: sl.scan(model, folder / "scanned", store=MemoryStore(), batch=40, size=400),
        )
    }
    for name in OVER_DATASETS[1:]:
        method: Any = getattr(sl, name)
        subject = {"id": 3} if name == "neighbors" else {}
        answers[name] = run_limited(
            1_000_000, lambda method=method, subject=subject: method(scan, **subject)
        )
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


@pytest.mark.parametrize("name", CLAIMS)
def test_a_tiny_file_never_reserves_what_it_claims(name: str, answers: dict[str, str]) -> None:
    assert answers[name].startswith(f"{name}.png: ")
    assert "truncated" in answers[name]
    # Of the JPEG not even the header is whole.
    assert name == "claim_jpeg" or "it claims 9999×9999 pixels" in answers[name]


@pytest.mark.parametrize("name", [*COMMANDS, *OVER_DATASETS])
def test_each_door_says_what_to_lower(name: str, answers: dict[str, str]) -> None:
    answer = answers[name].strip()
    assert "not enough memory" in answer
    assert "lower" in answer
    assert "\n" not in answer
    if name in COMMANDS:
        assert answer.startswith("1 sightline: ")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_tasks(Path(sys.argv[1]))))
