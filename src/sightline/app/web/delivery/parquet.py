"""The images of a scan as a Parquet file that `embedding-atlas` opens.

    embedding-atlas images.parquet --x x --y y --text text --image image --neighbors neighbors

(embedding-atlas 0.26, https://apple.github.io/embedding-atlas/tool.html.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import read_image_groups, read_unit_table
from sightline.data.search.nearest import find_nearest
from sightline.data.search.projection import MIN_PROJECTED_VECTORS, project_vectors
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.images.files import replace_atomically

NEIGHBORS = 10
UNITS_PER_IMAGE = 3
ROWS_PER_GROUP = 2_000

# For more images, t-SNE takes minutes.
MAX_TSNE_IMAGES = 20_000


def write_image_table(explorer: Explorer, path: Path) -> Path:
    """Writes one row for each image; returns the path.

    Columns: `id`; `path`; `image`, the thumbnail as a struct of `bytes` and `path`; `text`, the
    classes in words; `class`, null where unknown; `predicted` and `probability`; `is_right`, null
    where the class is unknown; `x` and `y`, places on the map of the penultimate features;
    `neighbors`, a struct of `ids` and `distances`; `units`, the units of which the image is among
    the strongest.

    Raises SightlineError if the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scan = explorer.scan
    columns = collect_image_columns(explorer)
    schema = make_table_schema()
    with (
        replace_atomically(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for start in range(0, scan.images, ROWS_PER_GROUP):
            ids = range(start, min(start + ROWS_PER_GROUP, scan.images))
            group = {name: [values[id] for id in ids] for name, values in columns.items()}
            group["image"] = read_thumbnail_structs(scan, ids)
            writer.write_table(pa.table(group, schema=schema))
    return path


def make_table_schema() -> Any:
    """The columns and their types."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.int64(),
            "path": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "text": pa.string(),
            "class": pa.string(),
            "predicted": pa.string(),
            "probability": pa.float32(),
            "is_right": pa.bool_(),
            "x": pa.float32(),
            "y": pa.float32(),
            "neighbors": pa.struct(
                {"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float32())}
            ),
            "units": pa.list_(pa.string()),
        }
    )


def collect_image_columns(explorer: Explorer) -> dict[str, Sequence[Any]]:
    """All columns but the pictures, by name."""
    scan = explorer.scan
    predicted, probability = list_predictions(scan)
    classes, is_right = list_classes(scan)
    texts = [
        ", predicted ".join(word for word in pair if word is not None)
        for pair in zip(classes, predicted, strict=True)
    ]
    places = place_images(scan)
    return {
        "id": range(scan.images),
        "path": list(map(escape_for_display, scan.paths)),
        "text": texts,
        "class": classes,
        "predicted": predicted,
        "probability": probability,
        "is_right": is_right,
        "x": [place[0] for place in places],
        "y": [place[1] for place in places],
        "neighbors": list_nearest_images(scan),
        "units": name_strongest_units(explorer),
    }


def list_classes(scan: Scan) -> tuple[list[str | None], list[bool | None]]:
    """The class of each image, and whether the network's best class is the same.

    None where the class is not known; whether it is right also where no class is the network's.
    """
    groups = read_image_groups(scan)
    if groups.noun != "class":
        return [None] * scan.images, [None] * scan.images
    indices = groups.indices.tolist()
    classes = [groups.names[index] if index >= 0 else None for index in indices]
    if not scan.model_labels or max(groups.labels, default=-1) < 0:
        return classes, [None] * scan.images
    answers = scan.top5[0][:, 0].tolist()
    is_right = [
        groups.labels[index] == answer if index >= 0 else None
        for index, answer in zip(indices, answers, strict=True)
    ]
    return classes, is_right


def list_predictions(scan: Scan) -> tuple[list[str | None], list[float | None]]:
    """The network's best class for each image, and its probability; None without classes."""
    if not scan.model_labels:
        return [None] * scan.images, [None] * scan.images
    labels, probabilities = scan.top5
    names: list[str | None] = [scan.model_labels[index] for index in labels[:, 0].tolist()]
    return names, probabilities[:, 0].tolist()


def place_images(scan: Scan) -> list[list[float]]:
    """The place of each image on a map of the features, by t-SNE, or PCA of very many images.

    All zero where there are too few images or features for a map.
    """
    if scan.images < MIN_PROJECTED_VECTORS or not scan.vector_layers:
        return [[0.0, 0.0]] * scan.images
    kind = "tsne" if scan.images <= MAX_TSNE_IMAGES else "pca"
    try:
        projection = project_vectors(scan.vectors(scan.vector_layers[0]), kind, 2, 0)
    except SightlineError:  # vectors of one number
        return [[0.0, 0.0]] * scan.images
    return projection.positions.tolist()


def list_nearest_images(scan: Scan) -> list[dict[str, Any]]:
    """The nearest other images of each image, and their distances."""
    count = min(NEIGHBORS, scan.images - 1)
    if count < 1 or not scan.vector_layers:
        return [{"ids": [], "distances": []} for _ in range(scan.images)]
    vectors = scan.vectors(scan.vector_layers[0])
    itself = torch.arange(scan.images)
    distances, ids = find_nearest(vectors, vectors, count, "cosine", exclude=itself)
    return [
        {"ids": row_ids, "distances": row_distances}
        for row_ids, row_distances in zip(ids.tolist(), distances.tolist(), strict=True)
    ]


def name_strongest_units(explorer: Explorer) -> list[list[str]]:
    """The units of which each image is among the strongest, by rank: «layer4 unit 7: stripes».

    A unit without a name is «layer4 unit 7».
    """
    scan = explorer.scan
    ranked: list[list[tuple[int, str]]] = [[] for _ in range(scan.images)]
    for layer in scan.layers:
        shown_layer = escape_for_display(layer)
        names = read_unit_table(explorer, layer).names
        titles = [
            f"{shown_layer} unit {unit}" + (f": {name}" if name else "")
            for unit, name in enumerate(names)
        ]
        for rank, row in enumerate(scan.top(layer).ids.tolist()):
            for unit, id in enumerate(row):
                if id >= 0:
                    ranked[id].append((rank, titles[unit]))
    strongest: list[list[str]] = []
    for units in ranked:
        units.sort(key=lambda pair: pair[0])
        strongest.append([name for _, name in units[:UNITS_PER_IMAGE]])
    return strongest


def read_thumbnail_structs(scan: Scan, ids: range) -> list[dict[str, Any]]:
    """The thumbnails of images as JPEG files, as data sets of images hold them."""
    return [{"bytes": content, "path": None} for content in scan.thumbnail_bytes(ids)]
