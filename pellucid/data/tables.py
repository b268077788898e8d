"""Parquet files, and the Arrow files of Hugging Face `datasets` folders, read with pyarrow some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pellucid.data.formats import FIELDS
from pellucid.data.records import BadRecord, Raw
from pellucid.errors import PellucidError, did_you_mean

_ROWS = 256  # at a time


def read_parquet(path: Path, name: str) -> Iterator[Raw | BadRecord]:
    """The rows of a Parquet file, of the columns that a format knows."""
    arrow = _pyarrow(name)
    from pyarrow import parquet  # type: ignore[import-untyped]

    try:
        with parquet.ParquetFile(path) as table:
            columns = known_columns(table.schema_arrow.names, name)
            batches = table.iter_batches(batch_size=_ROWS, columns=columns)
            yield from rows((batch.to_pylist() for batch in batches), name)
    except (arrow.ArrowException, OSError) as error:
        yield broken(name, "Parquet", error)


def read_arrow(path: Path, name: str) -> Iterator[Raw | BadRecord]:
    """The rows of an Arrow file, written as a stream (as `datasets` does) or as a file."""
    arrow = _pyarrow(name)
    try:
        with arrow.memory_map(str(path)) as source:
            try:
                batches: Iterable[Any] = arrow.ipc.open_stream(source)
            except arrow.ArrowInvalid:
                opened = arrow.ipc.open_file(source)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
                names = opened.schema.names
            else:
                names = batches.schema.names  # type: ignore[attr-defined]
            columns = known_columns(names, name)
            parts = (
                batch.slice(start, _ROWS).select(columns).to_pylist()
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS)
            )
            yield from rows(parts, name)
    except (arrow.ArrowException, OSError) as error:
        yield broken(name, "Arrow", error)


def rows(parts: Iterable[list[dict[str, Any]]], name: str) -> Iterator[Raw | BadRecord]:
    number = 0
    for part in parts:
        for value in part:
            number += 1
            yield Raw(f"{name}, record {number}", without_missing(value))
    if not number:
        yield BadRecord(name, "no records", "the table has no rows; leave the file out")


def without_missing(value: Any) -> Any:
    """The value without fields that are null: in a table each row has every field, and null says that it has none."""
    if isinstance(value, dict):
        return {key: without_missing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_missing(item) for item in value]
    return value


def known_columns(names: list[str], name: str) -> list[str]:
    """The columns that a format knows. Raises BadRecord if there is none."""
    known = [column for column in names if column in FIELDS]
    if not known:
        near = next(filter(None, (did_you_mean(column, FIELDS) for column in names)), "")
        raise BadRecord(
            name,
            "unknown format",
            f"the columns are {', '.join(names)}{near}; expected 'text', 'messages' or another of "
            f"{', '.join(sorted(FIELDS))}; rename the column",
        )
    return known


def broken(name: str, what: str, error: Exception) -> BadRecord:
    said = " ".join(str(error).split()).rstrip(".")
    return BadRecord(name, f"broken {what} file", f"the file cannot be read as {what} ({said}); copy or write it again")


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise PellucidError(
            f"{name}: reading it needs pyarrow; install it with: pip install 'pellucid[data]'"
        ) from None
    return pyarrow
