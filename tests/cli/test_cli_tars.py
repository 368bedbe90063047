"""A collection in tar files, from training to the search page."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from command_line import run
from PIL import Image

from hashlens import Encoder, HashIndex, open_source
from hashlens.service.limits import Limits
from hashlens.service.schemas import Refused
from hashlens.service.thumbnails import Thumbnails


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """150 digits in two tar files, the last of them cut; a pattern of both."""
    folder = tmp_path_factory.mktemp("shards").resolve()
    source = open_source("digits")
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(80 * shard, 80 * shard + 80):
                content = io.BytesIO()
                source.load(i).save(content, "PNG")
                label = str(source.label_name(i)).encode()
                texts = {"cls": label, "json": json.dumps({"row": i}).encode()}
                for kind, data in (texts | {"png": content.getvalue()}).items():
                    member = tarfile.TarInfo(f"{i:04}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    last = folder / "1.tar"
    with tarfile.open(last) as tar:
        at = tar.getmember("0150.cls").offset
    last.write_bytes(last.read_bytes()[: at + 100])
    return str(folder / "{0..1}.tar")


def test_training_index_evaluation_search_and_thumbnails(shards: str, tmp_path: Path) -> None:
    model, index = tmp_path / "model", tmp_path / "shop.idx"
    trained = run(
        *("train", shards, "--out", model, "--bits", 16, "--no-pretrained"),
        *("--backbone", "smallcnn", "--epochs", 1),
    )
    assert trained.exit_code == 0, trained.output
    made = run("index", "create", index, shards, "--model", model)
    assert made.exit_code == 0, made.output
    assert made.stdout == f"added 150, skipped 0; {index} holds 150 images\n"
    assert "note: 1 of 2 tar files are not whole: " in made.stderr
    first = shards.replace("{0..1}", "0")
    found = json.loads(run("search", index, f"{first}#0", "-k", 1, "--json").stdout)
    assert found["results"][0]["hits"][0]["uri"] == f"{first}#0"
    measured = run("evaluate", model, "--database", shards, "--queries", first, "--json")
    assert json.loads(measured.stdout)["n_database"] == 150
    with HashIndex.open(index, Encoder.load(model)) as opened:
        assert [record.metadata["row"] for record in opened] == [*range(150)]
        record = opened.get(149)
        assert opened.verify() == []
    thumbnails = Thumbnails(Limits())
    assert Image.open(io.BytesIO(thumbnails.get(record.uri).data)).size == (8, 8)
    assert thumbnails.original(record.uri).media_type == "image/png"
    Path(first).rename(tmp_path / "gone.tar")
    with pytest.raises(Refused):
        thumbnails.get(f"{first}#0")
