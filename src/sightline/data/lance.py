"""Tables in Lance format, opened by LanceDB: what a store keeps its rows in, and what a data set
may be.

The only file that imports LanceDB. Its functions raise what LanceDB raises, which
`convert_table_errors` turns into one line.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sightline.data.search.nearest import Metric

# LanceDB's caches of a table's metadata and indexes. By default they take gigabytes, and they fill
# as pieces are added.
CACHE_BYTES = 1_000_000


# Those of a table that is read stay as long as it is open.
READ_CACHE_BYTES = 64_000_000


def open_lance_table(folder: str | Path, name: str) -> Any:
    """The table `FOLDER/NAME.lance`, which must exist, as LanceDB's own object."""
    import lancedb

    session = lancedb.Session(READ_CACHE_BYTES, READ_CACHE_BYTES)
    return lancedb.connect(folder, session=session).open_table(name)


def open_or_make_lance_tables(folder: str | Path, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Tables by name, each made with its Arrow schema if there is none, in a session of their own.

    The session has small caches: the tables are for adding rows during a long time.
    """
    import lancedb

    session = lancedb.Session(CACHE_BYTES, CACHE_BYTES)
    database = lancedb.connect(folder, session=session)
    return {
        name: database.create_table(name, schema=schema, exist_ok=True)
        for name, schema in schemas.items()
    }


def iterate_row_slice(
    table: Any, columns: list[str], start: int, row_count: int, batch_rows: int
) -> Iterator[Any]:
    """Columns of consecutive rows in the table's order, as Arrow batches of at most `batch_rows`.

    Raises no error for rows beyond the table's end: they are not there.
    """
    query = table.search().select(columns).offset(start).limit(row_count)
    yield from query.to_batches(batch_rows)


def build_lance_index(table: Any, column: str, metric: Metric, lists: int, codes: int) -> None:
    """Builds an IVF-PQ index over a column of vectors, in place of an earlier one.

    `lists` is the number of parts into which the vectors are divided, `codes` the number of bytes
    that each vector is encoded in.
    """
    from lancedb.index import IvfPq

    settings = IvfPq(distance_type=metric, num_partitions=lists, num_sub_vectors=codes)
    table.create_index(column, config=settings, replace=True)
