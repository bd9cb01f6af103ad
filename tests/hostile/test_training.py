"""Trainings that are killed, and folders of trainings that somebody damaged.

Whatever the moment, the same command ends with the same bytes as a run that was never stopped; and
what is no checkpoint of this training is refused in one line.
"""

import copy
import json
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.generators.training import log
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingRun, train_stylizer
from sightline.images import files

STEPS = 4
CHECKPOINT_PERIOD = 2

COMPARED_NAMES = ("losses.jsonl", "stylizer.safetensors")


@pytest.fixture(scope="module")
def fabric() -> Any:
    pytest.importorskip("tensorboard")
    lightning = pytest.importorskip("lightning_fabric")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        launched = lightning.Fabric(accelerator="cpu", devices=1)
        launched.launch()
    return launched


@pytest.fixture(scope="module")
def photos() -> PhotoDataset:
    pixels = (smooth(5, 40, seed=5) * 255).round().byte().permute(0, 2, 3, 1)
    return PhotoDataset(pixels.contiguous().numpy(), "smooth")


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and events take longer than the training of so small a network."""
    monkeypatch.setattr(log, "plot_loss_curves", lambda rows: torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr(log.TrainingLog, "write_tensorboard_events", lambda *_: None)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    folder = tmp_path_factory.mktemp("training")
    for seed, name in enumerate(("wave", "night")):
        sl.write(smooth(side=56, seed=30 + seed)[..., :48, :], folder / f"{name}.png")
    return TrainingPlan(
        (folder / "wave.png", folder / "night.png"),
        folder / "out",
        width=4,
        blocks=1,
        size=32,
        style_size=48,
        batch=2,
        steps=STEPS,
        every=CHECKPOINT_PERIOD,
        lr=0.01,
    )


Train = Callable[[TrainingPlan], Path]


@pytest.fixture
def train(photos: PhotoDataset, tiny: sl.Model, fabric: Any) -> Train:
    """Trains, or resumes the training of a plan."""
    return lambda plan: train_stylizer(plan, photos, tiny, fabric)


@pytest.fixture(scope="module")
def finished(plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, fabric: Any) -> Path:
    """The folder of a training that was never stopped. Nobody may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "plot_loss_curves", lambda rows: torch.zeros(1, 3, 8, 8))
        patch.setattr(log.TrainingLog, "write_tensorboard_events", lambda *_: None)
        return train_stylizer(plan, photos, tiny, fabric).parent


@pytest.fixture
def resumable(finished: Path, plan: TrainingPlan, tmp_path: Path) -> TrainingPlan:
    """The plan with a copy of the folder."""
    return replace(plan, out=Path(shutil.copytree(finished, tmp_path / "out")))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_training(folder: Path, other: Path) -> None:
    """Files and states to the bit, each step's row once, and nothing half-written."""
    for name in COMPARED_NAMES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    checkpoint = read_checkpoint(folder)
    other_checkpoint = read_checkpoint(other)
    assert checkpoint["rows"] == rows
    state = checkpoint["state"]
    other_state = other_checkpoint["state"]
    assert state["network"].keys() == other_state["network"].keys()
    for name, value in state["network"].items():
        assert torch.equal(value, other_state["network"][name]), name
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other_state["optimizer"]["state"][number][name]), name
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def list_contents(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold, without those of its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "writer")
    }


# ── killed ──


def run_and_kill(work: Callable[[], object], kill_before: str, kill_after: str) -> None:
    """Runs in a child process, which is killed before or after it puts a file in its place.

    The names are «FILE COUNT»: the file, and which time it is written.
    """

    def run_child() -> None:
        counts: dict[str, int] = {}
        put_in_place = os.replace

        def put_or_kill(temporary: Path, path: Path) -> None:
            counts[path.name] = counts.get(path.name, 0) + 1
            moment = f"{path.name} {counts[path.name]}"
            if moment == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            put_in_place(temporary, path)
            if moment == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        files.os.replace = put_or_kill
        work()

    child = get_context("fork").Process(target=run_child)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kill_before", "kill_after"),
    [
        ("losses.jsonl 1", ""),
        ("", "losses.jsonl 1"),
        ("checkpoint.pt 1", ""),
        ("", "checkpoint.pt 1"),
        ("losses.jsonl 2", ""),
        ("", "losses.jsonl 2"),
        ("", "000004.png 1"),
        ("stylizer.safetensors 2", ""),
        ("", "stylizer.safetensors 2"),
        ("checkpoint.pt 2", ""),
        ("", "checkpoint.pt 2"),
    ],
)
def test_killed_at_any_write_it_ends_with_the_same_bytes(
    *,
    kill_before: str,
    kill_after: str,
    finished: Path,
    plan: TrainingPlan,
    train: Train,
    tmp_path: Path,
) -> None:
    killed_plan = replace(plan, out=tmp_path / "killed")
    run_and_kill(lambda: train(killed_plan), kill_before, kill_after)
    assert train(killed_plan).is_file()
    assert_same_training(killed_plan.out, finished)


def test_killed_again_and_again(
    finished: Path, plan: TrainingPlan, train: Train, tmp_path: Path
) -> None:
    """A run that goes on writes losses.jsonl from its checkpoint first."""
    killed_plan = replace(plan, out=tmp_path / "killed")
    for kill_before in ("stylizer.safetensors 1", "checkpoint.pt 2", "losses.jsonl 1"):
        run_and_kill(lambda: train(killed_plan), kill_before, "")
    train(killed_plan)
    assert_same_training(killed_plan.out, finished)


@pytest.mark.parametrize("name", ["stylizer.safetensors", "losses.jsonl"])
def test_a_finished_training_gets_its_files_again(
    name: str, finished: Path, resumable: TrainingPlan, train: Train
) -> None:
    (resumable.out / name).unlink()
    train(resumable)
    assert_same_training(resumable.out, finished)
    (resumable.out / name).write_bytes(b"older")
    train(resumable)
    assert_same_training(resumable.out, finished)


# ── another training ──


def test_another_picture_of_the_same_name_is_refused(resumable: TrainingPlan, train: Train) -> None:
    other_picture = resumable.out.parent / "wave.png"
    sl.write(smooth(side=56, seed=9)[..., :48, :], other_picture)
    other_plan = replace(resumable, styles=(other_picture, resumable.styles[1]))
    before = list_contents(resumable.out)
    with pytest.raises(sl.SightlineError, match=r"made with style picture wave\.png \w{16}, not"):
        train(other_plan)
    assert list_contents(resumable.out) == before

    # The same pictures from another folder are the same.
    moved = Path(shutil.copy(resumable.styles[0], resumable.out.parent / "moved"))
    moved_plan = replace(resumable, styles=(moved.replace(other_picture), resumable.styles[1]))
    assert train(moved_plan).is_file()


def test_another_loss_network_of_the_same_name_is_refused(
    resumable: TrainingPlan, photos: PhotoDataset, fabric: Any
) -> None:
    network = small_network()
    with torch.no_grad():
        network.get_submodule("fc").weight[0, 0] += 1  # type: ignore[index]
    other = sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=32)
    with pytest.raises(sl.SightlineError, match=r"loss network Sequential \w{16}, not Sequential"):
        train_stylizer(resumable, photos, other, fabric)


def test_another_network_to_extend_is_refused(
    plan: TrainingPlan, finished: Path, train: Train, tmp_path: Path
) -> None:
    base = Path(shutil.copy(finished / "stylizer.safetensors", tmp_path / "base.safetensors"))
    style = tmp_path / "scream.png"
    sl.write(smooth(side=56, seed=8)[..., :48, :], style)
    extending = replace(plan, styles=(style,), extend=base, out=tmp_path / "more", steps=1)
    train(extending)
    base.unlink()
    shorter = replace(plan, out=tmp_path / "base", steps=1)
    train(shorter).rename(base)
    with pytest.raises(sl.SightlineError, match="made with network to extend"):
        train(extending)


@pytest.mark.parametrize("extends", [False, True])
def test_two_styles_never_get_one_name(
    *, extends: bool, plan: TrainingPlan, finished: Path, train: Train, tmp_path: Path
) -> None:
    copy_of_wave = Path(shutil.copy(plan.styles[0], tmp_path / "wave.jpg"))
    styles = (copy_of_wave,) if extends else (*plan.styles, copy_of_wave)
    extend = finished / "stylizer.safetensors" if extends else None
    with pytest.raises(sl.SightlineError, match="would both be named 'wave'"):
        train(replace(plan, styles=styles, extend=extend, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ── damaged checkpoints ──


def change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value that lies under the keys; a function gives the new value from the old one."""

    def apply(content: dict[str, Any]) -> None:
        part = content
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to(part[keys[-1]]) if callable(to) else to

    return apply


def remove(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        part = content
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]

    return apply


NETWORK = ("state", "network")
WEIGHT = (*NETWORK, "last.conv.weight")
MOMENT = ("state", "optimizer", "state", 0)

DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no plan": (remove("plan"), "plan: field required"),
    "no rows": (remove("rows"), "rows: field required"),
    "plan of numbers": (change("plan", "lr", to=0.01), "plan.lr"),
    "plan with more": (change("plan", "extra", to="1"), "made with extra 1, not none"),
    "plan with less": (remove("plan", "lr"), "made with lr none, not 0.01"),
    "step text": (change("state", "step", to="4"), "state.step"),
    "step fraction": (change("state", "step", to=4.0), "state.step"),
    "step truth": (change("state", "step", to=True), "state.step"),
    "step negative": (change("state", "step", to=-1), "state.step"),
    "step huge": (change("state", "step", to=10**30), "at step 10+ of 4"),
    "step earlier": (change("state", "step", to=3), "each of its 3 steps once"),
    "slowed": (change("state", "slowed", to=7), "state.slowed"),
    "network list": (change(*NETWORK, to=list), "state.network"),
    "network empty": (change(*NETWORK, to={}), "the network lacks"),
    "weight number": (change(*WEIGHT, to=1.0), "instance of tensor"),
    "weight missing": (remove(*WEIGHT), "the network lacks last.conv.weight"),
    "weight more": (change(*NETWORK, "\n\x1b[2J", to=torch.ones(1)), r"has no \\n\\x1b"),
    "weight shape": (change(*WEIGHT, to=lambda value: value[:1].clone()), "it must be float32"),
    "weight empty": (change(*WEIGHT, to=torch.ones(0)), r"is float32 \(0,\)"),
    "weight type": (change(*WEIGHT, to=lambda value: value.double()), "is float64"),
    "weight integers": (change(*WEIGHT, to=lambda value: value.int()), "is int32"),
    "weight sparse": (change(*WEIGHT, to=lambda value: value.to_sparse()), "sparse|not a whole"),
    "weight NaN": (change(*WEIGHT, to=lambda value: value * torch.nan), "NaN or infinity"),
    "optimizer none": (change("state", "optimizer", "state", to={}), "of other parameters"),
    "optimizer number": (change("state", "optimizer", "state", 99, to={}), "other parameters"),
    "optimizer names": (change("state", "optimizer", "state", to={"a": {}}), "valid integer"),
    "moment missing": (remove(*MOMENT, "exp_avg"), "lacks exp_avg"),
    "moment shape": (change(*MOMENT, "exp_avg", to=torch.ones(2)), "exp_avg of parameter 0"),
    "moment infinite": (
        change(*MOMENT, "exp_avg", to=lambda value: value + torch.inf),
        "NaN or infinity",
    ),
    "moment negative": (
        change(*MOMENT, "exp_avg_sq", to=lambda value: value - 1),
        "of no such step",
    ),
    "moment step": (change(*MOMENT, "step", to=torch.tensor(9.0)), "of no such step"),
    "rows twice": (change("rows", to=lambda rows: rows + rows[-1:]), "each of its 4 steps once"),
    "rows lost": (change("rows", to=lambda rows: rows[1:]), "each of its 4 steps once"),
    "rows empty": (change("rows", to=[{}] * 4), "each of its 4 steps once"),
    "row text": (change("rows", 0, "loss", to="0.5"), "rows.0.loss"),
    "row of others": (change("rows", 0, "more", to=1.0), "different losses"),
}


@pytest.fixture(scope="module")
def run(
    *,
    plan: TrainingPlan,
    finished: Path,
    photos: PhotoDataset,
    tiny: sl.Model,
    fabric: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainingRun:
    """A run that has not begun, in an empty folder."""
    out = tmp_path_factory.mktemp("damaged")
    return TrainingRun(replace(plan, out=out), photos, tiny, fabric)


@pytest.fixture(scope="module")
def content(finished: Path) -> dict[str, Any]:
    """What a whole checkpoint holds. Nobody may change it."""
    return read_checkpoint(finished)


def expect_refusal(run: TrainingRun, message: str) -> None:
    """The run is refused in one line, has not begun, and changed no file."""
    before = list_contents(run.plan.out)
    with pytest.raises(sl.SightlineError, match=message) as caught:
        run.resume_checkpoint()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1000
    assert run.step == 0
    assert list_contents(run.plan.out) == before


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    case: str, run: TrainingRun, content: dict[str, Any]
) -> None:
    damage, message = DAMAGES[case]
    damaged = copy.deepcopy(content)
    damage(damaged)
    torch.save(damaged, run.plan.out / "checkpoint.pt")
    expect_refusal(run, message)


@pytest.mark.parametrize("value", [None, [], 3, {}, {"weight": torch.ones(2)}], ids=repr)
def test_a_torch_file_of_something_else_is_refused(value: Any, run: TrainingRun) -> None:
    torch.save(value, run.plan.out / "checkpoint.pt")
    expect_refusal(run, "is no whole checkpoint of this training")


def test_a_cut_or_changed_file_is_refused_or_whole(run: TrainingRun, finished: Path) -> None:
    whole = (finished / "checkpoint.pt").read_bytes()
    chance = random.Random(0)
    path = run.plan.out / "checkpoint.pt"
    for length in (0, 1, 4, *chance.sample(range(len(whole)), 20), len(whole) - 1):
        path.write_bytes(whole[:length])
        expect_refusal(run, "is no whole checkpoint of this training")
    for _ in range(20):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with suppress(sl.SightlineError):
            run.resume_checkpoint()
        run.step = 0


def test_code_in_a_checkpoint_is_not_run(run: TrainingRun, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"plan": Code()}, run.plan.out / "checkpoint.pt")
    expect_refusal(run, "no code from a weights file is run")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_refused(kind: str, run: TrainingRun) -> None:
    path = run.plan.out / "checkpoint.pt"
    path.unlink(missing_ok=True)
    try:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path)
        expect_refusal(run, "is no whole checkpoint of this training")
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
