"""Lance tables against the rows that went into them, and against a search by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sightline.data.lance import (
    build_lance_index,
    iterate_row_slice,
    open_lance_table,
    open_or_make_lance_tables,
)

SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("name", pa.string())])


def make_rows(first: int, count: int) -> pa.Table:
    ids = range(first, first + count)
    return pa.table({"id": ids, "name": [f"row {number}" for number in ids]}, schema=SCHEMA)


def test_tables_are_made_once_and_opened_afterwards(tmp_path: Path) -> None:
    tables = open_or_make_lance_tables(tmp_path, {"first": SCHEMA, "second": SCHEMA})
    assert list(tables) == ["first", "second"]
    tables["second"].add(make_rows(0, 3))
    again = open_or_make_lance_tables(tmp_path, {"second": SCHEMA})
    assert again["second"].to_arrow() == make_rows(0, 3)
    assert open_lance_table(tmp_path, "second").to_arrow() == make_rows(0, 3)
    assert open_lance_table(str(tmp_path), "first").count_rows() == 0


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        open_lance_table(tmp_path, "nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "row_count", "expected"),
    [(0, 7, range(7)), (2, 3, range(2, 5)), (5, 9, range(5, 7)), (7, 2, range(0))],
)
def test_slices_are_in_the_order_of_the_table(
    tmp_path: Path, start: int, row_count: int, expected: range
) -> None:
    table = open_or_make_lance_tables(tmp_path, {"rows": SCHEMA})["rows"]
    table.add(make_rows(0, 4))  # two pieces: a slice goes across them
    table.add(make_rows(4, 3))
    batches = list(iterate_row_slice(table, ["name"], start, row_count, 2))
    assert all(batch.schema.names == ["name"] for batch in batches)
    assert all(batch.num_rows <= 2 for batch in batches)
    names = [name for batch in batches for name in batch["name"].to_pylist()]
    assert names == [f"row {number}" for number in expected]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_an_index_finds_what_a_search_of_everything_finds(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    vectors *= rng.uniform(0.2, 3, (300, 1)).astype(np.float32)  # the metrics differ
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 8)
    rows = pa.table({"id": range(300), "vector": column})
    table = open_or_make_lance_tables(tmp_path, {"rows": rows.schema})["rows"]
    table.add(rows)
    assert table.index_stats("vector_idx") is None
    for _ in range(2):  # the second takes the place of the first
        build_lance_index(table, "vector", metric, 3, 4)
    assert table.index_stats("vector_idx").num_indexed_rows == 300
    assert table.index_stats("vector_idx").distance_type == metric

    query = rng.standard_normal(8).astype(np.float32)
    if metric == "l2":
        distances = ((vectors - query) ** 2).sum(1)
    else:
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        distances = 1 - vectors @ query / lengths
    # All lists, and so many candidates that the codes' coarseness does not matter.
    search = table.search(query, vector_column_name="vector").distance_type(metric).limit(5)
    found = search.nprobes(3).refine_factor(60).to_arrow()
    assert found["id"].to_pylist() == distances.argsort()[:5].tolist()
    np.testing.assert_allclose(found["_distance"], np.sort(distances)[:5], rtol=1e-4)
