"""An index as files that other libraries read."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import unpack_bits
from hashlens.errors import IndexStoreError, InvalidInputError, needs_extra
from hashlens.files import remove_abandoned, written_aside
from hashlens.index.rows import ROW, load_text, require_intact_rows
from hashlens.index.snapshot import View
from hashlens.index.store import file_errors
from hashlens.types import OWN_COLUMN, Codes, Ids

_ROWS_AT_A_TIME = 16384
COLUMNS = ("id", "uri", "label", "metadata", "code", "features")


def export(view: View, path: Path, kind: str) -> list[str]:
    """Write the living images, in the order of their ids; see ``HashIndex.export``."""
    if kind not in FORMATS:
        raise InvalidInputError(f"format: expected one of {', '.join(FORMATS)}, got {kind!r}")
    if path.exists():
        raise IndexStoreError(f"{path}: exists already; choose another name or remove it")
    with file_errors(path):
        remove_abandoned(path.parent)
        with written_aside(path) as aside:
            return FORMATS[kind](view, aside) or []


def _to_faiss(view: View, path: Path) -> None:
    """An ``IndexBinaryFlat``; where ids are not 0, 1, 2, ..., inside an ``IndexBinaryIDMap``."""
    with needs_extra("export to FAISS", "faiss"):
        import faiss
    snapshot = view.snapshot
    positions = snapshot.living()
    index: Any = faiss.IndexBinaryFlat(8 * snapshot.codes.shape[1])
    gaps = not np.array_equal(snapshot.ids[positions], np.arange(len(positions)))
    index = faiss.IndexBinaryIDMap(index) if gaps else index
    for rows in _pieces(positions):
        codes = np.ascontiguousarray(snapshot.codes[rows])
        index.add_with_ids(codes, snapshot.ids[rows]) if gaps else index.add(codes)
    path.touch()  # FAISS says what is wrong with a file in many lines of its own
    faiss.write_index_binary(index, os.fspath(path))


def _to_parquet(view: View, path: Path, *, listed: bool = False) -> list[str]:
    """One table, written in pieces; ``listed``: codes as lists of bytes, as LanceDB wants them."""
    schema, pieces, notes = _tables(view, listed)
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema) as writer:
        for table in pieces:
            writer.write_table(table)
    return notes


def to_arrow(view: View) -> Any:
    """All living images as one table, in memory."""
    schema, pieces, _ = _tables(view)
    import pyarrow as pa

    return pa.concat_tables([schema.empty_table(), *pieces])


def joined(tables: Sequence[Any]) -> Any:
    """Such tables as one; a key of the metadata may have another type in each of them."""
    import pyarrow as pa

    names = [name for name in tables[0].column_names if name in COLUMNS]
    table = pa.concat_tables(table.select(names) for table in tables)
    return _with_metadata(table, _metadata_types(table["metadata"].to_pylist())[0])


_TYPES = {"bool": "bool", "int": "int64", "float": "float64", "float int": "float64"}


def _metadata_types(texts: Iterable[str | None]) -> tuple[dict[str, Any], list[str]]:
    """The type of a column for each key of metadata (JSON texts), and what should be told."""
    import pyarrow as pa

    kinds: dict[str, set[str]] = {}
    for text in filter(None, texts):
        for key, value in json.loads(text).items():
            if value is not None:
                kinds.setdefault(key, set()).add(_kind(value))
    types, notes = {}, []
    for key, found in kinds.items():
        alias = _TYPES.get(" ".join(sorted(found)), "string")
        if key in COLUMNS:
            notes.append(f"metadata {key!r}: the name of another column; in column metadata alone")
            continue
        types[key] = pa.list_(pa.string()) if found == {"words"} else pa.type_for_alias(alias)
        if alias == "string" and found not in ({"str"}, {"words"}):
            notes.append(f"metadata {key!r}: of several types, or nested; a column of text")
    return types, notes


def _kind(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "words"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "large int"
    return type(value).__name__


def _with_metadata(table: Any, types: dict[str, Any]) -> Any:
    """A table with a column for each key of its metadata; what does not fit a type as text."""
    import pyarrow as pa

    def cell(value: Any, kind: Any) -> Any:
        if value is None or kind in (pa.bool_(), pa.int64()):
            return value
        if kind == pa.string() and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        return float(value) if kind == pa.float64() else _clean(value)

    held = [json.loads(text or "{}") for text in table["metadata"].to_pylist()]
    for key, kind in types.items():
        values = [cell(row.get(key), kind) for row in held]
        table = table.append_column(_clean(key), pa.array(values, kind))
    return table


def _tables(view: View, listed: bool = False) -> tuple[Any, Iterator[Any], list[str]]:
    """Schema and pieces of a table of all images, and notes on them; see ``to_arrow``."""
    with needs_extra("an Arrow or Parquet table", "parquet"):
        import pyarrow as pa
    snapshot = view.snapshot
    width, dim = snapshot.codes.shape[1], snapshot.meta.feature_dim
    value = pa.from_numpy_dtype(np.dtype(snapshot.meta.features))
    columns = [
        pa.field("id", pa.int64(), metadata=OWN_COLUMN),
        ("uri", pa.string()),
        ("label", pa.string()),
        pa.field("metadata", pa.string(), metadata=OWN_COLUMN),
        ("code", pa.list_(pa.uint8(), width) if listed else pa.binary(width)),
    ]
    if dim:
        columns.append(("features", pa.list_(value, dim)))
    schema = pa.schema(columns, {"bits": str(snapshot.meta.bits)})
    types, notes = _metadata_types(text for _, texts in _with_texts(view) for text in texts[2])

    def pieces() -> Iterator[Any]:
        for rows, texts in _with_texts(view):
            flat = pa.array(np.ascontiguousarray(snapshot.codes[rows]).reshape(-1))
            code = pa.FixedSizeListArray.from_arrays(flat, width)
            if not listed:
                buffers = [None, flat.buffers()[1]]
                code = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), buffers)
            words = (pa.array(_clean(column), pa.string()) for column in texts)
            values: list[Any] = [pa.array(snapshot.ids[rows]), *words, code]
            if dim:
                flat = pa.array(np.ascontiguousarray(snapshot.features[rows]).reshape(-1), value)
                values.append(pa.FixedSizeListArray.from_arrays(flat, dim))
            yield _with_metadata(pa.Table.from_arrays(values, schema=schema), types)

    return _with_metadata(schema.empty_table(), types).schema, pieces(), notes


def _to_numpy(view: View, path: Path) -> None:
    """A folder: ids.npy, codes.npy, features.npy, and records.jsonl in the same order."""
    path.mkdir()
    snapshot = view.snapshot
    positions = snapshot.living()
    np.save(path / "ids.npy", snapshot.ids[positions])
    for name, array in (("codes", snapshot.codes), ("features", snapshot.features)):
        header = np.lib.format.header_data_from_array_1_0(array)
        header["shape"] = (len(positions), array.shape[1])
        with (path / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in _pieces(positions):
                file.write(array[rows].tobytes())
    with (path / "records.jsonl").open("w", encoding="ascii") as lines:
        for rows, texts in _with_texts(view):
            for image_id, *row in zip(snapshot.ids[rows].tolist(), *texts, strict=True):
                record = {"id": image_id, "uri": row[0], "label": row[1]}
                lines.write(json.dumps(record | {"metadata": json.loads(row[2] or "{}")}) + "\n")


def _rows(view: View, nul: str = "\0") -> Iterator[tuple[int, str, str | None, str, Codes]]:
    """Id, URI, label, metadata (JSON text) and code of each image, texts as Unicode has them."""
    for rows, texts in _with_texts(view):
        codes = np.ascontiguousarray(view.snapshot.codes[rows])
        ids = view.snapshot.ids[rows].tolist()
        for image_id, uri, label, metadata, code in zip(ids, *texts, codes, strict=True):
            held = json.dumps(_clean(json.loads(metadata or "{}"), nul), ensure_ascii=False)
            yield image_id, _clean(uri or "", nul), _clean(label, nul), held, code


def _to_pgvector(view: View, path: Path) -> None:
    """SQL for psql: a table with ``code bit(n)``, its rows as COPY takes them, and a query."""
    bits = view.snapshot.meta.bits
    escapes = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            "\\set ON_ERROR_STOP on\nSET client_encoding = 'UTF8';\nBEGIN;\n"
            "CREATE EXTENSION IF NOT EXISTS vector;\n"
            "CREATE TABLE images (id bigint PRIMARY KEY, uri text, label text, metadata jsonb, "
            f"code bit({bits}));\nCOPY images FROM stdin;\n"
        )
        for image_id, *texts, code in _rows(view, nul=r"\x00"):
            word = "".join(map(str, unpack_bits(code[None], bits)[0].tolist()))
            cells = (r"\N" if text is None else text.translate(escapes) for text in texts)
            file.write("\t".join((str(image_id), *cells, word)) + "\n")
        file.write(
            "\\.\nCOMMIT;\n-- SELECT id, code <~> B'0110...' AS hamming FROM images "
            "ORDER BY hamming, id LIMIT 10;\n"
        )


def _to_milvus(view: View, path: Path) -> None:
    """A list of rows in JSON, where a BINARY_VECTOR is a list of its bytes."""
    with path.open("w", encoding="ascii") as file:
        file.write("[")
        before = ""
        for image_id, uri, label, metadata, code in _rows(view):
            row = {"id": image_id, "uri": uri, "label": label, "code": code.tolist()}
            file.write(before + json.dumps(row | {"metadata": json.loads(metadata)}))
            before = ",\n"
        file.write("]\n")


def _to_elasticsearch(view: View, path: Path) -> None:
    """Lines for _bulk, also of OpenSearch, where a bit vector is a list of signed bytes."""
    with path.open("w", encoding="ascii") as file:
        for image_id, uri, label, metadata, code in _rows(view):
            file.write(json.dumps({"index": {"_id": str(image_id)}}) + "\n")
            row = {"uri": uri, "label": label, "code": code.view(np.int8).tolist()}
            file.write(json.dumps(row | {"metadata": json.loads(metadata)}) + "\n")


def _to_sqlite(view: View, path: Path) -> None:
    """An SQLite file: a table whose codes ``vec_bit`` of sqlite-vec takes."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, uri, label, metadata, code BLOB)"
        )
        rows = ((*row, code.tobytes()) for *row, code in _rows(view))
        connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", rows)


FORMATS: dict[str, Callable[[View, Path], list[str] | None]] = {
    "faiss": _to_faiss,
    "parquet": _to_parquet,
    "numpy": _to_numpy,
    "pgvector": _to_pgvector,
    "milvus": _to_milvus,
    "elasticsearch": _to_elasticsearch,
    "lancedb": partial(_to_parquet, listed=True),
    "sqlite-vec": _to_sqlite,
}


def _pieces(positions: Ids) -> Iterator[NDArray[np.int64]]:
    for at in range(0, len(positions), _ROWS_AT_A_TIME):
        yield positions[at : at + _ROWS_AT_A_TIME]


def _with_texts(view: View) -> Iterator[tuple[Ids, tuple[list[str | None], ...]]]:
    """Pieces of positions, with their URIs, labels and metadata."""
    rows = view.connection.execute(f"SELECT {ROW} FROM images WHERE alive ORDER BY id")
    for positions in _pieces(view.snapshot.living()):
        piece = rows.fetchmany(len(positions))
        require_intact_rows(piece)
        yield (positions, tuple([load_text(row[column]) for row in piece] for column in (1, 2, 3)))


def _clean(value: Any, nul: str = "\0") -> Any:
    """Text, or what JSON holds, without lone surrogates (and NUL), which others do not take."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", nul)
    if isinstance(value, list):
        return [_clean(each, nul) for each in value]
    if isinstance(value, dict):
        return {_clean(key, nul): _clean(each, nul) for key, each in value.items()}
    return value
