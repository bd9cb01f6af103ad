"""Rows as Arrow tables, and the parts of the state that belong to some units."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from sightline.data.store.description import (
    DatasetDescription,
    LayerDescription,
    NetworkDescription,
    ScanDescription,
)
from sightline.data.store.interface import (
    ImageRow,
    VectorIndex,
    convert_to_tensor,
    make_images_schema,
    make_images_table,
    round_responses,
    select_units,
)

DESCRIPTION = ScanDescription(
    recipe={"model": "net"},
    network=NetworkDescription("ab" * 32, (0.5,), (0.5,), size=(32, 32), short_side=36),
    model_labels=("cat", "dog"),
    aliases={},
    layers={"conv": LayerDescription(2, (4, 5)), "fc": LayerDescription(1, (1, 1))},
    vector_lengths={"conv2": 2, "fc:in": 3},
    k=2,
    class_k=1,
    sample_size=3,
    batch_size=2,
    dataset=DatasetDescription("Files", "/photos", 6, "cd" * 32),
    class_names=(),
    response_kinds=("max", "mean"),
)


def make_row(id: int) -> ImageRow:
    """A row whose every value tells its column and its id."""
    return ImageRow(
        id=id,
        position=100 + id,
        path=f"{id}.png",
        sha256=f"digest {id}",
        label=200 + id,
        height=300 + id,
        width=400 + id,
        best_labels=np.array([500 + id, 501]),
        best_probabilities=np.array([0.5, 0.25], np.float32),
        thumbnail=b"jpeg %d" % id,
        vectors=(
            np.array([id, 1], np.float32),
            np.array([2, 3, id], np.float32),
        ),
        responses=(
            np.array([600 + id, 2, 3], np.float16),
            np.array([4, 5, 700 + id], np.float16),
        ),
    )


def test_rows_are_columns() -> None:
    table = make_images_table([make_row(0), make_row(1)], DESCRIPTION)
    assert table.schema == make_images_schema(DESCRIPTION)
    assert table.schema.field("class").type == pa.int32()
    assert table.schema.field("vector_1").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("response_0").type == pa.list_(pa.float16(), 2)
    assert table.to_pylist()[1] == {
        "id": 1,
        "position": 101,
        "path": "1.png",
        "sha256": "digest 1",
        "class": 201,
        "height": 301,
        "width": 401,
        "labels": [501, 501],
        "probabilities": [0.5, 0.25],
        "thumbnail": b"jpeg 1",
        "vector_0": [1, 1],
        "vector_1": [2, 3, 1],
        "response_0": [601, 2],
        "response_1": [3],
        "mean_response_0": [4, 5],
        "mean_response_1": [701],
    }


def test_without_responses_there_are_no_columns_for_them() -> None:
    bare = replace(DESCRIPTION, response_kinds=())
    names = make_images_schema(bare).names
    assert names[-2:] == ["vector_0", "vector_1"]
    assert make_images_table([make_row(0)], bare).column_names == names


def test_responses_stay_within_float16() -> None:
    numbers = [1.0, -2.5, 65504.0, 65519.0, 65520.0, 1e30, torch.inf, -1e9, -torch.inf, torch.nan]
    rounded = round_responses(torch.tensor(numbers))
    assert rounded.dtype == torch.float16
    largest = 65504.0
    assert rounded.tolist() == [1.0, -2.5, *[largest] * 5, *[-largest] * 3]
    assert round_responses(torch.tensor([1 / 3, 2e-8])).tolist() == [float(np.float16(1 / 3)), 0.0]


def test_columns_are_tensors() -> None:
    table = make_images_table([make_row(0), make_row(1), make_row(2)], DESCRIPTION)
    vectors = convert_to_tensor(table["vector_1"].combine_chunks(), 3)
    assert vectors.tolist() == [[2, 3, 0], [2, 3, 1], [2, 3, 2]]
    part = convert_to_tensor(table["vector_1"].combine_chunks()[1:], 3)
    assert part.tolist() == [[2, 3, 1], [2, 3, 2]]
    heights = convert_to_tensor(table["height"].combine_chunks())
    assert heights.dtype == torch.int32
    heights += 1  # its own memory
    assert table["height"].to_pylist() == [300, 301, 302]


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("top.values", (7, 5), 0),
        ("sample.values", (4, 7), 1),
        ("class.ids", (3, 7, 2), 1),
        ("class.sums", (3, 7), 1),
    ],
)
def test_units_lie_on_one_axis(name: str, shape: tuple[int, ...], axis: int) -> None:
    tensor = torch.arange(torch.tensor(shape).prod()).view(shape)
    assert torch.equal(select_units(name, tensor, slice(2, 5)), tensor.narrow(axis, 2, 3))
    assert torch.equal(select_units(name, tensor, None), tensor)


def test_an_index_says_what_it_is() -> None:
    index = VectorIndex(1200, "cosine", 4, 3, 8, 16, recall=0.975, sample=100, seconds=1.5)
    assert str(index) == (
        "IVF-PQ with 4 lists and 3 codes, 8 lists probed, recall@10 97.5% of 100 stored vectors"
    )
