"""Units of last layers, whose right names are known: each stands for its own class."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline as sl
from sightline.methods.units.naming.concepts import ConceptTable
from sightline.methods.units.naming.names import name_responses
from sightline.methods.units.naming.scores import score_concepts

pytestmark = pytest.mark.slow

BATCH_SIZE = 32
# The file of the weights, what the network is built with, and the least share of right units.
# SqueezeNet's scores are far apart from one picture to the next, and it classifies 61 % rightly.
NETWORKS = {
    "squeezenet1_0": ("squeezenet1_0.safetensors", {}, 0.5),
    "mobilenetv2_100": ("mobilenetv2_100_same.safetensors", {"pad_type": "same"}, 0.95),
}


def compute_logits(model: sl.Model, images: Tensor) -> Any:
    """The scores of images, N×classes."""
    batches: list[Tensor] = []
    with torch.no_grad():
        for batch in images.split(BATCH_SIZE):
            batches.append(model.logits(batch))
    return torch.cat(batches).numpy().astype(np.float16)


def read_every_twentieth(archive: Path, model: sl.Model) -> tuple[Tensor, list[str]]:
    """Every twentieth picture of an archive, as the network sees it, and its class."""
    images: list[Tensor] = []
    classes: list[str] = []
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        for member in members[::20]:
            file = tar.extractfile(member)
            assert file is not None
            pixels = np.array(Image.open(io.BytesIO(file.read())).convert("RGB"))
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
            images.append(model.fit(image))
            classes.append(member.name.split("/")[-2])
    return torch.cat(images), classes


def test_the_embedded_networks_classes_get_their_own_names(data: Path) -> None:
    model = sl.load()
    archive = data / "imagenette" / "imagenette160-val.tar"
    images, classes = read_every_twentieth(archive, model)
    names = sorted(set(classes))  # in the order of the network's classes
    assert len(names) == len(model.labels)
    indices = np.array([names.index(name) for name in classes])
    table = ConceptTable.from_pairs(names, np.arange(len(classes)), indices, len(classes))
    found = name_responses(compute_logits(model, images), table)
    assert [name.text if name else None for name in found] == names
    assert all(name.auprc > 0.8 for name in found if name)


@pytest.mark.parametrize("name", NETWORKS)
def test_of_one_photograph_a_class_the_best_concept_is_the_units_class(
    data: Path, name: str
) -> None:
    file, options, least_share = NETWORKS[name]
    rows = json.loads((data / "imagenet_labels.json").read_text())
    facts = json.loads((data / "nets" / file).with_suffix(".json").read_text())
    model = sl.load(
        name,
        weights=data / "nets" / file,
        labels=[row["name"] for row in rows],
        mean=facts["mean"],
        std=facts["std"],
        size=facts["input"],
        **options,
    )
    index_of = {row["wnid"]: row["index"] for row in rows}
    paths = sorted((data / "imagenet_samples").iterdir())[::8]
    classes = [index_of[path.name.split("_")[0]] for path in paths]
    responses = compute_logits(model, model.fit([str(path) for path in paths]))
    concepts = np.eye(len(paths), dtype=bool)
    best = score_concepts(responses[:, classes], concepts).correlation.argmax(1)
    assert (best == np.arange(len(paths))).mean() >= least_share
