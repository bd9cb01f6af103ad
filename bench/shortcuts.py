"""Does `sightline mistakes` find a shortcut that was planted, and none in networks without one?

    python training/shortcuts.py --data DIR --out NETWORKS
    python bench/shortcuts.py --networks NETWORKS

For each network, 1,500 test photographs of Imagenette, 30 % of every class with the feature. Of a
network with a shortcut: whether the first group is that of the feature, which share of its first
ten images are planted mistakes, and what each step finds. Of a clean network: whether any group is
said to have a cause.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.methods.diagnosis.mistakes import Evidence, MistakeGroup, explain_mistakes
from sightline.models.model import Model

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import shortcuts as training

TEST_IMAGES = 1500
CARRIER_SHARE = 0.3
LAYERS = ("2", "5", "8", "11")


@dataclass(frozen=True)
class Trial:
    """A network with its test images, N×3×H×W in [0, 1]; carriers are those with the feature."""

    facts: dict[str, object]
    model: Model
    images: Tensor
    labels: NDArray[np.int64]
    carriers: NDArray[np.bool_]
    class_names: tuple[str, ...]

    @property
    def target(self) -> int:
        """The class that the feature was planted for."""
        return int(str(self.facts["target"]))

    @property
    def is_clean(self) -> bool:
        """Whether the feature says nothing about the class."""
        return self.facts["kind"] == "clean"


def load_trial(path: Path, folder: Path) -> Trial:
    """A network that was trained, and test images drawn by its seed."""
    facts = json.loads(path.with_suffix(".json").read_text())
    content = np.load(folder / f"imagenette-val-{training.SIDE}.npz")
    seed = int(facts["seed"])
    generator = np.random.default_rng(100 + seed)
    chosen = generator.permutation(len(content["labels"]))[:TEST_IMAGES]
    labels = content["labels"][chosen]
    carriers = generator.random(len(labels)) < CARRIER_SHARE
    pixels, _ = training.plant_feature(
        content["pixels"][chosen], carriers, facts["feature"], generator
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    network = training.make_network()
    network.load_state_dict(torch.load(path, weights_only=True))
    class_names = tuple(content["classes"].tolist())
    model = Model(
        network.eval(),
        labels=class_names,
        size=training.SIDE,
        mean=training.MEAN,
        std=training.STD,
    )
    return Trial(facts, model, images, labels, carriers, class_names)


def gather(trial: Trial) -> Evidence:
    """What a scan would hold of the test images."""
    logits: list[Tensor] = []
    features: list[Tensor] = []
    responses: dict[str, list[NDArray[np.float16]]] = {layer: [] for layer in LAYERS}
    with torch.no_grad():
        for batch in trial.images.split(128):
            outputs = trial.model.run(batch, [*LAYERS, "13", "logits"])
            logits.append(outputs["logits"])
            features.append(outputs["13"])
            for layer in LAYERS:
                largest = outputs[layer].amax((2, 3)).numpy().astype(np.float16)
                responses[layer].append(largest)
    probabilities = torch.cat(logits).double().softmax(1)
    confidence, predicted = probabilities.max(1)
    return Evidence(
        ids=np.arange(len(trial.labels)),
        features=torch.cat(features).numpy(),
        responses={layer: np.concatenate(parts) for layer, parts in responses.items()},
        labels=trial.labels,
        predicted=predicted.numpy(),
        confidence=confidence.numpy(),
        class_names=trial.class_names,
    )


def is_planted(trial: Trial, group: MistakeGroup) -> NDArray[np.bool_]:
    """Which members are planted mistakes: they carry the feature and are taken for its class."""
    members = group.group.members
    is_other = trial.labels[members] != trial.target
    return trial.carriers[members] & is_other & (group.group.predicted == trial.target)


def judge(trial: Trial, groups: Sequence[MistakeGroup]) -> dict[str, object]:
    """What was found of a network."""
    shares = [float(is_planted(trial, group).mean()) for group in groups]
    rank = next((number for number, share in enumerate(shares, 1) if share >= 0.5), 0)
    facts: dict[str, object] = {
        "network": f"{trial.facts['kind']}-{trial.facts['seed']}",
        "feature": trial.facts["feature"],
        "share": trial.facts["share"],
        "groups": len(groups),
        "causes": sum(group.has_cause for group in groups),
        "rank": rank,
    }
    if rank:
        group = groups[rank - 1]
        facts["precision@10"] = float(is_planted(trial, group)[:10].mean())
        facts["excess"] = round(group.group.excess, 1)
        facts["units"] = len(group.units)
        facts["cause"] = list(group.cause)
        facts["has cause"] = group.has_cause
        for test in group.tests:
            facts[test.kind] = (
                f"{test.changed}/{test.images}, chance {test.random_changed:.1f}, "
                f"right {test.corrected}, p {test.p_value:.2f}"
            )
            facts[f"{test.kind} passed"] = test.is_passed
        facts["sentence"] = group.sentence
    facts["all groups"] = [describe_group(group) for group in groups]
    return facts


def describe_group(group: MistakeGroup) -> str:
    """A group in one line: its size and excess, the best unit, and what is changed without it."""
    chosen = [unit for unit in group.units if (unit.layer, unit.unit) in group.cause]
    units = ", ".join(f"{unit.separation:.2f} ({unit.score:.1f})" for unit in chosen)
    tests = ", ".join(
        f"{test.kind} {test.changed}/{test.images} ({test.random_changed:.1f})"
        for test in group.tests
    )
    share = group.share
    broken = "" if share is None else f"share {share.in_mistakes:.2f} {share.in_right:.2f} "
    if share is not None:
        broken += f"broken {share.broken}/{share.right_images} "
        broken += f"others {share.others_broken}/{share.other_images}"
    size = f"{len(group.group.members)}/{len(group.group.region)}"
    return f"{size} excess {group.group.excess:.1f} units {units} {tests} {broken}"


def main() -> None:
    """Prints a line for each network and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None)
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    for path in sorted(arguments.networks.glob("*.pt")):
        if arguments.only and path.stem not in arguments.only:
            continue
        trial = load_trial(path, arguments.networks)
        start = time.monotonic()
        evidence = gather(trial)
        groups = explain_mistakes(trial.model, evidence, lambda ids, t=trial: t.images[list(ids)])
        facts = judge(trial, groups)
        facts["seconds"] = round(time.monotonic() - start, 1)
        facts["accuracy"] = round(float(1 - evidence.is_wrong.mean()), 3)
        planted = trial.carriers & (trial.labels != trial.target)
        taken = planted & (evidence.predicted == trial.target)
        facts["planted mistakes"] = int(taken.sum())
        results.append(facts)
        print(json.dumps(facts), flush=True)
    summarize(results)


def summarize(results: Sequence[dict[str, object]]) -> None:
    """Prints how often each step finds what was planted, and how often it is wrong."""
    planted = [facts for facts in results if str(facts["network"]).startswith("shortcut")]
    clean = [facts for facts in results if str(facts["network"]).startswith("clean")]
    steps = {
        "its group is among those shown": lambda facts: facts["rank"] > 0,
        "a unit responds more to it than to the class": lambda facts: facts.get("units", 0) > 0,
        "units off": lambda facts: facts.get("units off passed", False),
        "patch covered": lambda facts: facts.get("patch covered passed", False),
        "patch inpainted": lambda facts: facts.get("patch inpainted passed", False),
        "patch pasted": lambda facts: facts.get("patch pasted passed", False),
        "its group is the first": lambda facts: facts["rank"] == 1,
        "its group is the first, with a cause": lambda facts: (
            facts["rank"] == 1 and facts.get("has cause", False)
        ),
        "precision@10 of at least 0.8": lambda facts: facts.get("precision@10", 0) >= 0.8,
    }
    for name, is_met in steps.items():
        print(f"| {name} | {sum(map(bool, map(is_met, planted)))} of {len(planted)} |")
    alarms = sum(int(str(facts["causes"])) > 0 for facts in clean)
    shown = sum(int(str(facts["groups"])) for facts in clean)
    print(f"| clean networks with a cause | {alarms} of {len(clean)} ({shown} groups shown) |")


if __name__ == "__main__":
    main()
