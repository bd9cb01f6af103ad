"""Training of style networks on a tiny loss network: that it learns, resumes to the bit, survives NaN, and gives one loss on one or two processes."""

import json
import os
import signal
import warnings
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.generators.training.dataset import PhotoDataset, decode_photo_folder
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingRun, train_stylizer
from sightline.images import io as images

pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")


def fabric(**given: Any) -> Any:
    from lightning_fabric import Fabric

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Fabric(**{"accelerator": "cpu", "devices": 1, **given})
        if "strategy" not in given:
            made.launch()
        return made


@pytest.fixture(scope="module")
def photos() -> PhotoDataset:
    pixels = (smooth(12, 40, seed=5) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return PhotoDataset(pixels, "smooth")


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    for seed, name in enumerate(("wave", "night", "scream")):
        images.write(smooth(side=48, seed=30 + seed), tmp_path / f"{name}.png")
    styles = tmp_path / "wave.png", tmp_path / "night.png"
    return TrainingPlan(
        styles,
        tmp_path / "out",
        width=4,
        blocks=1,
        size=32,
        style_size=48,
        batch=2,
        steps=6,
        every=2,
        lr=0.01,
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "checkpoint.pt", weights_only=True)["state"]["network"]


def losses(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "losses.jsonl").read_text().splitlines()]


def test_it_learns_and_writes_while_it_runs(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    train_stylizer(replace(plan, steps=20, every=10), photos, tiny, fabric())
    rows = losses(plan.out)
    assert [row["step"] for row in rows] == list(range(1, 21))
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first
    assert sorted(path.name for path in (plan.out / "samples").iterdir()) == [
        "000010.png",
        "000020.png",
    ]
    assert sl.read(plan.out / "samples" / "000020.png").shape == (1, 3, 3 * 42 - 2, 3 * 42 - 2)
    assert sl.read(plan.out / "losses.png").shape[1] == 3
    assert list(plan.out.glob("events.out.tfevents.*"))
    found = read_fixed_style_network(plan.out / "stylizer.safetensors")
    assert (found.names, found.metadata["step"]) == (("wave", "night"), 20)


# Another test of the same process may have loaded Lance, which warns of every fork; the child does not use it.
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_killed_and_resumed_it_ends_with_the_same_bits(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    train_stylizer(plan, photos, tiny, fabric())
    other = replace(plan, out=plan.out.with_name("killed"))

    def die(step: Any) -> None:
        if step.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    child = get_context("fork").Process(
        target=lambda: train_stylizer(other, photos, tiny, fabric(), die)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [row["step"] for row in losses(other.out)] == [1, 2, 3, 4], "the last checkpoint"
    train_stylizer(other, photos, tiny, fabric())
    one, two = weights(plan.out), weights(other.out)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert losses(plan.out) == losses(other.out)
    assert not [path for path in other.out.iterdir() if path.name.startswith(".")]


def test_a_callback_ends_it_with_everything_kept(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    train_stylizer(plan, photos, tiny, fabric(), lambda step: step.index == 3)
    assert read_fixed_style_network(plan.out / "stylizer.safetensors").metadata["step"] == 3


def test_a_checkpoint_of_another_plan_is_refused(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    train_stylizer(replace(plan, steps=2), photos, tiny, fabric())
    for other, said in (
        (replace(plan, steps=2, lr=0.02), "lr 0.01, not 0.02"),
        (replace(plan, steps=2, seed=1), "seed 0, not 1"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            train_stylizer(other, photos, tiny, fabric())


def test_two_processes_give_the_loss_of_one(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    plan = replace(plan, steps=3, every=3)
    train_stylizer(plan, photos, tiny, fabric())
    other = replace(plan, out=plan.out.with_name("two"))

    def work(engine: Any) -> None:
        warnings.simplefilter("ignore")
        train_stylizer(other, photos, tiny, engine)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric(devices=2, strategy="ddp_fork").launch(work)
    for one, two in zip(losses(plan.out), losses(other.out), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    # Weights differ where the gradient is zero up to rounding (a shift before the next norm), which Adam makes into whole steps.
    one, two = (
        read_fixed_style_network(out / "stylizer.safetensors") for out in (plan.out, other.out)
    )
    with torch.no_grad():
        pictures = [found.network(smooth(side=32), found.make_mix("night")) for found in (one, two)]
    torch.testing.assert_close(*pictures, rtol=0, atol=0.01)


def test_nan_goes_back_and_halves_the_step(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    run = TrainingRun(replace(plan, steps=10), photos, tiny, fabric())
    for _ in range(2):
        run.run_step()
    run.write_checkpoint()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.run_step()
    with torch.no_grad():
        run.network.last.conv.weight.fill_(torch.nan)
    with pytest.warns(
        UserWarning, match=r"loss is nan at step 4: back to step 2, step size halved to 0\.005"
    ):
        assert run.run_step() is None
    assert run.step == 2
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    assert run.run_step()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_nan_that_stays_ends_it(plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model) -> None:
    run = TrainingRun(plan, photos, tiny, fabric())
    run.last_good_state["network"]["last.conv.weight"].fill_(torch.nan)
    run.restore_state(run.last_good_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(6):
            assert run.run_step() is None
    with pytest.raises(sl.SightlineError, match="the loss is nan at step 1 even with"):
        run.run_step()
    assert not (plan.out / "stylizer.safetensors").exists()


def test_a_new_style_trains_its_rows_only(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model
) -> None:
    made = train_stylizer(replace(plan, steps=4), photos, tiny, fabric())
    old = read_fixed_style_network(made)
    more = replace(
        plan,
        styles=(plan.out.parent / "scream.png",),
        out=plan.out.with_name("more"),
        extend=made,
        steps=4,
    )
    new = read_fixed_style_network(train_stylizer(more, photos, tiny, fabric()))
    assert new.names == ("wave", "night", "scream")
    before, after = old.network.state_dict(), new.network.state_dict()
    for name, value in after.items():
        assert torch.equal(value[:2] if ".norm." in name else value, before[name]), name
        if ".norm." in name:
            assert not torch.equal(value[2], before[name].mean(0))
    photo = smooth(side=32, seed=3)
    with torch.no_grad():
        assert torch.equal(
            new.network(photo, new.make_mix("wave")), old.network(photo, old.make_mix("wave"))
        )


def test_plans_that_cannot_be_carried_out(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, tmp_path: Path
) -> None:
    images.write(smooth(side=4), tmp_path / "speck.png")
    for wrong, said in (
        (replace(plan, styles=()), "at least one style image"),
        (replace(plan, norm="batch"), "room for one style, not 2"),
        (replace(plan, size=64), "kept with 40 pixels"),
        (replace(plan, styles=(tmp_path / "speck.png",)), "speck.png is 4×4 pixels"),
        (replace(plan, styles=(tmp_path / "wav.png",)), "did you mean wave.png"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            train_stylizer(wrong, photos, tiny, fabric())
        assert not plan.out.exists()


# ── photographs ──


def test_photos_are_decoded_once(tmp_path: Path) -> None:
    folder, cache = tmp_path / "photos", tmp_path / "cache"
    for seed in range(3):
        images.write(
            smooth(side=50, seed=seed)[..., : 40 + 5 * seed], folder / "deep" / f"{seed}.png"
        )
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match=r"1 of 4 pictures are left out; the first: broken\.jpg"):
        found = decode_photo_folder(folder, 32, cache)
    assert (len(found), found.side) == (3, 32)
    expected = images.crop_center(
        images.resize_short_side(images.read(folder / "deep" / "1.png"), 32), 32, 32
    )
    assert np.abs(found.pixels[1] / 255.0 - expected[0].permute(1, 2, 0).numpy()).max() < 0.003
    made = (cache / "photos.u8").stat().st_mtime_ns
    assert len(decode_photo_folder(folder, 32, cache)) == 3
    assert (cache / "photos.u8").stat().st_mtime_ns == made
    images.write(smooth(side=50, seed=9), folder / "new.png")
    with pytest.warns(UserWarning, match="1 of 5"):
        assert len(decode_photo_folder(folder, 32, cache)) == 4


def test_batches_depend_on_seed_and_step_alone(photos: PhotoDataset) -> None:
    one = photos.draw_batch(0, 3, 4, 24)
    assert one.shape == (4, 3, 24, 24)
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one, photos.draw_batch(0, 3, 4, 24))
    assert not torch.equal(one, photos.draw_batch(0, 4, 4, 24))
    assert not torch.equal(one, photos.draw_batch(1, 3, 4, 24))


def test_folders_without_photographs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    for name, said in (
        ("absent", "no folder"),
        ("empty", "holds no picture"),
        ("bad", "none of 1 pictures can be read; the first: a.jpg"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            decode_photo_folder(tmp_path / name, 32, tmp_path / "cache")
    assert not (tmp_path / "cache" / "photos.u8").exists()
