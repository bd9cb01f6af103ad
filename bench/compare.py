"""Does `sightline compare` put what was changed on purpose first, and how long does it take?

    python training/shortcuts.py --data DIR --out NETWORKS
    python bench/compare.py --networks NETWORKS [--skip truth|speed]

Truth, for each clean network over 1,000 photographs of Imagenette, 30 % of them with its feature:
the same network with its channels permuted; with one unit rewired at random; with its last layer
trained again after most images of one class were relabelled; and the network of the same seed that
has learned a shortcut. Speed, in seconds by the clock: 5,000 images, responses of random
numbers in the shape of all convolutions of MobileNetV2 and SqueezeNet, and 1,280 and 512 features.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.diagnosis.compare import compare, match_layers, standardize_layers
from sightline.methods.diagnosis.similarity.cka import compute_cka_matrix
from sightline.methods.diagnosis.similarity.neighbor_graphs import find_groups, rank_image_neighbors
from sightline.methods.diagnosis.similarity.prediction_flips import FlipGroup
from sightline.methods.diagnosis.similarity.unit_changes import rank_changed_units
from sightline.models.model import Model

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import shortcuts as training

TEST_IMAGES = 1000
CARRIER_SHARE = 0.3
LAYERS = ["2", "5", "8", "11"]
CONVOLUTIONS = ("0", "3", "6", "9")
RELABELLED_SHARE = 0.7

MOBILE_BLOCKS = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))
SQUEEZE_FIRES = tuple((width // 4, width) for width in (64, 64, 128, 128, 192, 192, 256, 256))


# ── truth ──


def load_network(path: Path) -> nn.Sequential:
    """A network that was trained."""
    network = training.make_network()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def write_images(folder: Path, networks: Path, facts: Mapping[str, object]) -> NDArray[np.bool_]:
    """Test images in folders of their classes; returns which carry the feature, by file name."""
    content = np.load(networks / f"imagenette-val-{training.SIDE}.npz")
    generator = np.random.default_rng(300 + int(str(facts["seed"])))
    chosen = generator.permutation(len(content["labels"]))[:TEST_IMAGES]
    carriers = generator.random(TEST_IMAGES) < CARRIER_SHARE
    pixels, _ = training.plant_feature(
        content["pixels"][chosen], carriers, str(facts["feature"]), generator
    )
    classes = content["classes"].tolist()
    for number, (image, label) in enumerate(zip(pixels, content["labels"][chosen], strict=True)):
        path = folder / classes[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        sl.write(picture, path)
    return carriers


def scan(network: nn.Module, images: Path, store: Path, classes: list[str]) -> sl.Scan:
    """A scan of the images by a network."""
    model = Model(
        network.eval(), labels=classes, size=training.SIDE, mean=training.MEAN, std=training.STD
    )
    return sl.scan(model, images, store=store, layers=LAYERS, vectors=["13"])


def permute_channels(network: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with all channels in another order."""
    twin = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    following = {"0": "3", "3": "6", "6": "9", "9": "14"}
    with torch.no_grad():
        for name, next_name in following.items():
            conv = twin.get_submodule(name)
            norm = twin.get_submodule(str(int(name) + 1))
            after = twin.get_submodule(next_name)
            order = torch.randperm(len(conv.weight), generator=generator)
            conv.weight.copy_(conv.weight[order].clone())
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.copy_(tensor[order].clone())
            after.weight.copy_(after.weight[:, order].clone())
    return twin


def rewire_unit(network: nn.Sequential, seed: int) -> tuple[nn.Sequential, tuple[str, int]]:
    """The network with one unit's weights drawn anew, and that unit's ReLU layer and number."""
    twin = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    name = CONVOLUTIONS[seed % len(CONVOLUTIONS)]
    conv = twin.get_submodule(name)
    # A unit that does something: one with a large scale in its norm.
    norm = twin.get_submodule(str(int(name) + 1))
    strong = norm.weight.abs().argsort(descending=True)[: len(norm.weight) // 2]
    unit = int(strong[torch.randint(len(strong), (), generator=generator)])
    with torch.no_grad():
        old = conv.weight[unit]
        conv.weight[unit] = torch.randn(old.shape, generator=generator) * old.std()
    return twin, (str(int(name) + 2), unit)


def relabel_class(
    network: nn.Sequential, networks: Path, seed: int
) -> tuple[nn.Sequential, int, int]:
    """The network with its last layer trained again, most images of one class relabelled."""
    generator = np.random.default_rng(seed)
    source, target = generator.choice(10, 2, replace=False).tolist()
    content = np.load(networks / f"imagenette-train-{training.SIDE}.npz")
    pixels = content["pixels"][::2]
    labels = content["labels"][::2].copy()
    is_changed = (labels == source) & (generator.random(len(labels)) < RELABELLED_SHARE)
    labels[is_changed] = target
    with torch.no_grad():
        body = network[:-1]
        parts = np.array_split(pixels, 10)
        features = torch.cat([body(training.to_tensor(part)) for part in parts])
    twin = copy.deepcopy(network)
    head = twin[-1]
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    goals = torch.from_numpy(labels)
    for _ in range(200):
        loss = F.cross_entropy(head(features), goals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return twin, source, target


def try_network(path: Path, networks: Path) -> dict[str, object]:
    """What compare says of each change of one network."""
    facts = json.loads(path.with_suffix(".json").read_text())
    seed = int(facts["seed"])
    network = load_network(path)
    classes = np.load(networks / f"imagenette-val-{training.SIDE}.npz")["classes"].tolist()
    result: dict[str, object] = {"network": path.stem}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        images = folder / "images"
        carriers = write_images(images, networks, facts)
        old = scan(network, images, folder / "old.scan", classes)

        permuted = compare(
            old, scan(permute_channels(network, seed), images, folder / "p", classes)
        )
        result["permuted is the same"] = permuted.is_same
        result["permuted CKA"] = float(np.abs(np.diag(permuted.cka) - 1).max())

        rewired, unit = rewire_unit(network, seed)
        comparison = compare(old, scan(rewired, images, folder / "r", classes))
        first = comparison.changed_units[0]
        result["rewired first"] = (first.layer, first.unit) == unit

        relabelled, source, target = relabel_class(network, networks, seed)
        comparison = compare(old, scan(relabelled, images, folder / "l", classes))
        best = comparison.flips[0]
        result["relabelled first"] = best.old_class == source or (
            best.old_class < 0 and best.new_class == target
        )
        result["relabelled"] = f"{best.title} (planted {classes[source]} → {classes[target]})"

        other_path = networks / f"shortcut-{seed}.pt"
        if other_path.exists():
            other = load_network(other_path)
            planted = int(json.loads(other_path.with_suffix(".json").read_text())["target"])
            comparison = compare(old, scan(other, images, folder / "s", classes))
            best = comparison.flips[0]
            names = [Path(old.paths[int(comparison.ids[row])]).stem for row in best.members]
            share = float(np.mean([carriers[int(name)] for name in names]))
            result["shortcut first"] = best.new_class == planted and share > 0.6
            result["shortcut"] = f"{best.title}, {share:.0%} with the feature"
    return result


# ── speed ──


def list_mobile_units() -> list[int]:
    """Channels of all convolutions of MobileNetV2."""
    units = [32, 32, 16]
    channels = 16
    for width, count in MOBILE_BLOCKS[1:]:
        for _ in range(count):
            units += [6 * channels, 6 * channels, width]
            channels = width
    return [*units, 1280]


def list_squeeze_units() -> list[int]:
    """Channels of all convolutions of SqueezeNet."""
    units = [96]
    for squeeze, expand in SQUEEZE_FIRES:
        units += [squeeze, expand, expand]
    return [*units, 1000]


def make_responses(units: list[int], images: int, seed: int) -> dict[str, NDArray[np.float16]]:
    """Random responses of layers, each a mixture of 64 hidden causes and noise."""
    generator = np.random.default_rng(seed)
    causes = np.random.default_rng(0).normal(size=(images, 64)).astype(np.float32)
    responses: dict[str, NDArray[np.float16]] = {}
    for number, count in enumerate(units):
        weights = generator.normal(size=(64, count)).astype(np.float32) / 8
        noise = generator.normal(size=(images, count)).astype(np.float32)
        values = np.maximum(0, causes @ weights + 0.5 * noise)
        responses[f"layer {number}"] = values.astype(np.float16)
    return responses


def measure_speed(images: int = 5000) -> None:
    """Prints the seconds of each step by the clock."""
    old = make_responses(list_mobile_units(), images, 1)
    new = make_responses(list_squeeze_units(), images, 2)
    features = [
        np.random.default_rng(seed).normal(size=(images, width)).astype(np.float32)
        for seed, width in ((3, 1280), (4, 512))
    ]
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    cka = compute_cka_matrix(old, new)
    seconds["layers"] = time.perf_counter() - start
    start = time.perf_counter()
    old_units = standardize_layers(old)
    new_units = standardize_layers(new)
    matches = match_layers(old_units, new_units, cka)
    seconds["units"] = time.perf_counter() - start
    start = time.perf_counter()
    ranks = [rank_image_neighbors(values) for values in features]
    for near, far in ((0, 1), (1, 0)):
        find_groups(ranks[near], ranks[far], 4)
        find_groups(ranks[near], rank_image_neighbors(features[near][:, ::2]), 4)
    seconds["groups"] = time.perf_counter() - start
    start = time.perf_counter()
    members = np.arange(0, images, 50)
    rank_changed_units(old_units, new_units, matches, [FlipGroup("a", 0, 1, members, 0.5, 0.5)] * 4)
    seconds["changed units"] = time.perf_counter() - start
    shapes = f"{len(old)} × {len(new)} layers, {sum(list_mobile_units()):,} and "
    shapes += f"{sum(list_squeeze_units()):,} units, {images:,} images"
    listed = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    print(f"{shapes}: {sum(seconds.values()):.1f} s ({listed})", flush=True)


def main() -> None:
    """Prints what compare says of each network, how often it is right, and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], choices=("truth", "speed"))
    arguments = parser.parse_args()
    if "speed" not in arguments.skip:
        measure_speed()
    if "truth" in arguments.skip or arguments.networks is None:
        return
    results: list[dict[str, object]] = []
    for path in sorted(arguments.networks.glob("clean-?.pt")):
        results.append(try_network(path, arguments.networks))
        print(json.dumps(results[-1]), flush=True)
    for key in ("permuted is the same", "rewired first", "relabelled first", "shortcut first"):
        values = [bool(result[key]) for result in results if key in result]
        print(f"| {key} | {sum(values)} of {len(values)} |")


if __name__ == "__main__":
    main()
