"""Instance norm against batch norm in a style network: the lecture's claim (Ulyanov 2017), as an
experiment.

`python bench/instance_norm.py --photos FOLDER --out DIR`: both norms, three seeds each, on plain
photographs, on the same with equalized contrast, and on the same restyled beforehand to the target
style (the three conditions of Huang 2017, figure 1). Everything else is equal: weights at the start
but for the norm, batches, losses, steps. Stopped at any moment, the same command goes on. Writes
curves.png, pictures.png and results.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from skimage.exposure import equalize_hist

import sightline as sl
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.generators.training.dataset import PhotoDataset, decode_photo_folder
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingRun, train_stylizer
from sightline.images.io import pictures as images
from sightline.images.plotting import maps as render

NORMS, SEEDS = ("instance", "batch"), (0, 1, 2)
PHOTOS, SIDE, HELD_OUT = 1000, 80, 32
TITLES = {
    "plain": "photographs as they are",
    "equalized": "contrast equalized",
    "styled": "restyled beforehand",
}


def equalized(pixels: np.ndarray) -> np.ndarray:
    """Each photograph with a flat histogram of luminance; its colours are scaled along."""
    found = np.empty_like(pixels)
    for i, picture in enumerate(pixels):
        gray = np.maximum(picture @ np.array([0.299, 0.587, 0.114]), 1.0)
        found[i] = np.clip(picture * (equalize_hist(gray) * 255 / gray)[..., None], 0, 255)
    return found


def styled(pixels: np.ndarray, style: str) -> np.ndarray:
    """Each photograph in the target style, by the network that comes with Sightline."""
    painters = read_fixed_style_network("painters")
    with torch.no_grad():
        made = [
            painters.network(
                torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255,
                painters.make_mix(style).expand(len(part), -1),
            )
            for part in np.array_split(pixels, len(pixels) // 20)
        ]
    return (torch.cat(made) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def made_once(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file, made if it isn't there yet."""
    if not path.exists():
        np.save(path, make())
    return np.load(path)


@torch.no_grad()
def held_out(run: TrainingRun, photos: PhotoDataset) -> dict[str, float]:
    """Losses of the network as it is applied, on photographs that it was not trained on."""
    run.network.eval()
    photo = torch.from_numpy(photos.pixels[-HELD_OUT:]).permute(0, 3, 1, 2).float() / 255
    style = torch.zeros(HELD_OUT, dtype=torch.long)
    terms = run.task.perceptual_loss.compute_terms(
        run.network(photo, run.network.make_one_hot(style)), photo, style
    )
    content, manner = float(terms.content.mean()), float(terms.style.mean())
    return {
        "content": content,
        "style": manner,
        "loss": run.plan.content_weight * content + run.plan.style_weight * manner,
    }


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def curves(out: Path, conditions: list[str], window: int = 20) -> torch.Tensor:
    """Training losses, the mean over the seeds as a line and their range as a band."""
    figure = Figure(figsize=(4.4 * len(conditions), 3.6), dpi=100, layout="constrained")
    for axis, condition in zip(
        figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0], conditions, strict=True
    ):
        for norm, color in zip(NORMS, ("#a65d00", "#3b6ea5"), strict=True):
            values = torch.tensor(
                [
                    [row["loss"] for row in rows_of(out / f"{condition}-{norm}-{seed}")]
                    for seed in SEEDS
                ]
            )
            smooth = values.unfold(1, window, 1).mean(-1)
            steps = range(window, values.shape[1] + 1)
            axis.fill_between(
                steps, smooth.amin(0), smooth.amax(0), color=color, alpha=0.25, linewidth=0
            )
            axis.semilogy(steps, smooth.mean(0), color=color, label=f"{norm} norm")
        axis.set(title=TITLES[condition], xlabel=f"step (loss: mean of {window})")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return render.rasterize_figure(figure)


def sentence(condition: str, found: dict[str, list[dict[str, float]]]) -> str:
    """What came out, in words.

    Runs are compared seed by seed: a seed decides the photographs and the units of the loss.
    """
    means = {norm: statistics.mean(one["loss"] for one in found[norm]) for norm in NORMS}
    wins = sum(
        one["loss"] < other["loss"]
        for one, other in zip(found["instance"], found["batch"], strict=True)
    )
    return (
        f"{TITLES[condition]}: loss on held-out photographs {means['instance']:.2f} with instance "
        f"norm, {means['batch']:.2f} with batch norm "
        f"({means['batch'] / means['instance']:.2f} times); instance norm is better in {wins} of "
        f"{len(SEEDS)} pairs of runs."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--style", type=Path, required=True, help="the target style's picture")
    parser.add_argument(
        "--target", default="starry_night", help="its name in the network that comes with Sightline"
    )
    parser.add_argument("--out", type=Path, default=Path("out/instance_norm"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--conditions", nargs="+", default=list(TITLES), choices=list(TITLES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    everything = decode_photo_folder(asked.photos, SIDE, asked.out)
    chosen = np.linspace(0, len(everything) - 1, PHOTOS).astype(int)
    plain = made_once(
        asked.out / "plain.npy",
        lambda: np.array(everything.pixels[np.random.default_rng(0).permutation(chosen)]),
    )
    make = {
        "plain": lambda: plain,
        "equalized": lambda: equalized(plain),
        "styled": lambda: styled(plain, asked.target),
    }
    model, fabric = sl.load(), Fabric(accelerator="cpu", devices=1)
    base = TrainingPlan(
        (asked.style,),
        asked.out,
        width=12,
        blocks=3,
        size=64,
        style_size=128,
        steps=asked.steps,
        every=100,
        lr=3e-3,
    )
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    samples: list[torch.Tensor] = []
    for condition in asked.conditions:
        pixels = made_once(asked.out / f"{condition}.npy", make[condition])
        photos, held = PhotoDataset(pixels[:-HELD_OUT], condition), PhotoDataset(pixels, condition)
        found[condition] = {norm: [] for norm in NORMS}
        shown = [torch.from_numpy(pixels[-4:]).permute(0, 3, 1, 2).float() / 255]
        for norm in NORMS:
            for seed in SEEDS:
                plan = replace(
                    base, norm=norm, seed=seed, out=asked.out / f"{condition}-{norm}-{seed}"
                )
                train_stylizer(plan, photos, model, fabric)
                run = TrainingRun(plan, photos, model, fabric)
                run.resume_checkpoint()
                found[condition][norm].append(held_out(run, held))
            with torch.no_grad():
                shown.append(run.network(shown[0], torch.ones(4, 1)))
        print(sentence(condition, found[condition]), flush=True)
        samples.append(render.make_contact_sheet(torch.cat(shown), columns=4))
    images.write(curves(asked.out, asked.conditions), asked.out / "curves.png")
    images.write(
        render.make_contact_sheet(torch.cat(samples), columns=len(samples), gap=12),
        asked.out / "pictures.png",
    )
    (asked.out / "results.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
