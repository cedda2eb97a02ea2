"""Rows as a Parquet file, by pyarrow: the extra `parquet`."""

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from service.errors import RunError

ROWS_IN_GROUP = 10_000
"""Rows of a row group, which are in memory together: 20 MB of five predictions each."""


def library() -> Any:
    """Return the module pyarrow with its part for Parquet. Raise RunError if it is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise RunError(
            f"A .parquet file needs the extra parquet: {error}",
            f"Install pyarrow: {sys.executable} -m pip install pyarrow. Or give an --output that "
            "ends in .jsonl or .csv.",
        ) from error
    return pa


def write(file: BinaryIO, rows: Iterator[dict[str, Any]], top: int) -> None:
    """Write the rows in groups, with the columns and the nested fields of JSON Lines."""
    pa = library()
    schema = _schema(pa)
    with pa.parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, ROWS_IN_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _schema(pa: Any) -> Any:
    prediction = pa.struct(
        {
            "class_id": pa.int32(),
            "wnid": pa.string(),
            "label": pa.string(),
            "score": pa.float32(),
        }
    )
    return pa.schema(
        {
            "file": pa.string(),
            "model": pa.struct({"name": pa.string(), "version": pa.string()}),
            "predictions": pa.list_(prediction),
        }
    )
