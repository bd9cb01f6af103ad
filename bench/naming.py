"""Names of units: how long they take, and whether the units of a last layer get their own class.

`python bench/naming.py [--threads 2] [--skip speed|truth ...] [--weights FOLDER]`. Speed: 10,000
images, 4,800 units that each fire for one concept or for none, 1,860 concepts in the shape of
ImageNet's classes and their ancestors, one run. Truth: SqueezeNet and MobileNetV2 over 800
photographs, one for each of as many classes, where the best concept of a unit should be its class;
and the embedded network over Imagenette's 3,925 photographs of validation, with all checks.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sightline as sl
from sightline.methods.units.naming.concepts import ConceptTable
from sightline.methods.units.naming.names import name_responses, name_units
from sightline.methods.units.naming.scores import (
    make_label_matrix,
    score_concepts,
)

DATA = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
IMAGES, UNITS = 10_000, 4_800
CLASSES, GROUPS = 1_000, 860
NETWORKS = {
    "squeezenet1_0": ("squeezenet1_0", {}),
    "mobilenetv2_100": ("mobilenetv2_100_same", {"pad_type": "same"}),
}


def make_concepts(generator: np.random.Generator) -> ConceptTable:
    """A class for each image, and groups of 2 to 500 classes."""
    classes = generator.integers(0, CLASSES, IMAGES)
    labels = np.zeros((IMAGES, CLASSES + GROUPS), dtype=bool)
    labels[np.arange(IMAGES), classes] = True
    sizes = np.geomspace(2, 500, GROUPS).astype(int)
    for group, size in enumerate(sizes, start=CLASSES):
        start = generator.integers(0, CLASSES - size + 1)
        labels[:, group] = (classes >= start) & (classes < start + size)
    texts = [f"concept {number}" for number in range(CLASSES + GROUPS)]
    return ConceptTable(texts, make_label_matrix(labels))


def make_responses(concepts: ConceptTable, generator: np.random.Generator) -> Any:
    """Units of noise, three of four with a concept of their own, and which it is (−1 none)."""
    responses = generator.normal(size=(IMAGES, UNITS)).astype(np.float32)
    own = generator.integers(0, len(concepts.texts), UNITS)
    own[::4] = -1
    for unit, concept in enumerate(own):
        if concept >= 0:
            responses[concepts.get_images(concept), unit] += 3
    return np.maximum(responses, 0).astype(np.float16), own


def measure_speed() -> None:
    """Seconds for the names of 4,800 units, and how many are right."""
    generator = np.random.default_rng(0)
    concepts = make_concepts(generator)
    responses, own = make_responses(concepts, generator)
    print(f"{concepts.labels.nnz / IMAGES:.1f} concepts an image")
    for formulas in (False, True):
        start = time.perf_counter()
        processor = time.process_time()
        names = name_responses(responses, concepts, formulas=formulas)
        seconds = time.perf_counter() - start
        processor = time.process_time() - processor
        right = sum(
            name is not None and name.text == f"concept {concept}"
            for name, concept in zip(names, own, strict=True)
            if concept >= 0
        )
        wrong = sum(
            name is not None for name, concept in zip(names, own, strict=True) if concept < 0
        )
        print(
            f"formulas={formulas}: {seconds:.1f} s, {processor:.1f} s of processor time; "
            f"{right} of {(own >= 0).sum()} named rightly, {wrong} of {(own < 0).sum()} without a "
            "concept named",
            flush=True,
        )


def measure_truth() -> None:
    """Shares of the units of last layers whose best concept is their own class."""
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            measure_one_image_a_class(name)
        measure_imagenette(Path(folder))


def load_network(name: str) -> sl.Model:
    """A network of ImageNet with the weights of the data folder."""
    file, options = NETWORKS[name]
    labels = [row["name"] for row in json.loads((DATA / "imagenet_labels.json").read_text())]
    weights = DATA / "nets" / f"{file}.safetensors"
    facts = json.loads((DATA / "nets" / f"{file}.json").read_text())
    return sl.load(
        name,
        weights=weights,
        labels=labels,
        mean=facts["mean"],
        std=facts["std"],
        size=facts["input"],
        **options,
    )


def measure_one_image_a_class(name: str) -> None:
    """The best concept of each unit of the scores, one photograph a class."""
    model = load_network(name)
    rows = json.loads((DATA / "imagenet_labels.json").read_text())
    index_of = {row["wnid"]: row["index"] for row in rows}
    paths = sorted((DATA / "imagenet_samples").iterdir())
    classes = np.array([index_of[path.name.split("_")[0]] for path in paths])
    logits: list[torch.Tensor] = []
    for start in range(0, len(paths), 32):
        images = model.fit([str(path) for path in paths[start : start + 32]])
        with torch.no_grad():
            logits.append(model.logits(images))
    responses = torch.cat(logits).numpy()
    accuracy = (responses.argmax(1) == classes).mean()
    labels = make_label_matrix(np.eye(len(paths), dtype=bool))
    print(f"{name}: {len(paths)} photographs, {accuracy:.1%} classified rightly")
    softmax = torch.cat(logits).softmax(1).numpy()
    for kind, values in (("scores", responses), ("probabilities", softmax)):
        own_units = values[:, classes]
        best = score_concepts(own_units, labels).correlation.argmax(1)
        print(f"  {kind}: {(best == np.arange(len(paths))).mean():.1%} own class", flush=True)
    measure_predicted(name, responses)


def measure_predicted(name: str, responses: Any) -> None:
    """The same where the concepts are the classes that the network predicts."""
    predicted = responses.argmax(1)
    table = ConceptTable.from_pairs(
        [str(index) for index in range(responses.shape[1])],
        np.arange(len(responses)),
        predicted,
        len(responses),
    )
    units = np.flatnonzero(table.counts >= 1)
    best = score_concepts(responses[:, units], table.labels).correlation.argmax(1)
    print(f"  {name}, predicted classes: {(best == units).mean():.1%} of {len(units)} own")


def measure_imagenette(folder: Path) -> None:
    """The names of all units of two layers of the embedded network, and whether the last are right.

    Imagenette's classes are the network's, in the same order.
    """
    model = sl.load()
    archive = DATA / "imagenette" / "imagenette160-val.tar"
    scan = sl.scan(model, archive, store=folder / "imagenette.scan", layers=("conv5_2", "fc"))
    for layer in scan.layers:
        for formulas in (False, True):
            names = name_units(scan, layer, formulas=formulas)
            named = [name for name in names if name]
            print(f"sightnet, {layer}, formulas={formulas}: {len(named)} of {len(names)} named")
    for unit, name in enumerate(name_units(scan, "fc")):
        print(f"  {scan.class_names[unit]}: {name}", flush=True)


def main() -> None:
    """Runs what is not skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", nargs="*", default=[], choices=("speed", "truth"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if "speed" not in arguments.skip:
        measure_speed()
    if "truth" not in arguments.skip:
        measure_truth()


if __name__ == "__main__":
    main()
