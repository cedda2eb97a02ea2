"""The file that a bulk run writes, as JSON Lines, CSV or Parquet, and the file of its failures.

All formats get the same rows, in the order of the images: `file`, `model` and `predictions`, as
JSON Lines have them.
"""

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from service.tools.bulk import parquet

Row = dict[str, Any]
Write = Callable[[BinaryIO, Iterator[Row], int], None]


def failures_of(output: Path) -> Path:
    """Return the file with the failed images of `output`."""
    return output.with_name(f"{output.name}.failures.csv")


def check(output: Path) -> None:
    """Raise ValueError if no format has the ending of `output`, RunError without its library."""
    if output.suffix not in FORMATS:
        raise ValueError(f"the file must end in {', '.join(FORMATS)}; '{output.name}' does not")
    if FORMATS[output.suffix] is parquet.write:
        parquet.library()


def csv_writer(file: BinaryIO, header: Sequence[str]) -> Callable[[Sequence[Any]], object]:
    """Write the header, and return the function that writes a row."""
    rows = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
    rows.writerow(header)
    return rows.writerow


def json_lines(file: BinaryIO, rows: Iterator[Row], top: int) -> None:
    """Write a line of JSON for each row."""
    for row in rows:
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def csv_rows(file: BinaryIO, rows: Iterator[Row], top: int) -> None:
    """Write a line for each row: the file, then three columns for each of its `top` predictions."""
    columns = ("class_id", "label", "score")
    header = ["file", *(f"{name}_{place}" for place in range(1, top + 1) for name in columns)]
    write = csv_writer(file, header)
    for row in rows:
        write([row["file"], *(one[name] for one in row["predictions"] for name in columns)])


FORMATS: dict[str, Write] = {".jsonl": json_lines, ".csv": csv_rows, ".parquet": parquet.write}
"""The function that writes the format of each ending."""
