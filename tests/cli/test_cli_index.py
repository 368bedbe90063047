"""`hashlens index` and `hashlens search`, with a model of handwritten digits."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlens import Encoder, HashIndex, __version__, open_source
from hashlens.cli.main import app, main

runner = CliRunner()


def run(*words: Any, code: int = 0) -> str:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def run_json(*words: Any) -> Any:
    return json.loads(run(*words, "--json"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits as picture files, in one folder a class."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    source = open_source("digits#test")
    for i in range(40):
        path = folder / f"digit {source.label_name(i)}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.load(i).save(path)
    return folder


@pytest.fixture(scope="module")
def made(photos: Path, digits_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("made") / "shop.idx"
    out = run("index", "create", index, photos, "--model", digits_model, "--metadata", "lot=1")
    assert out == f"added 40, skipped 0; {index} holds 40 images\n"
    return index


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "shop.idx")


def test_info_says_what_it_holds(index: Path, digits_model: Path) -> None:
    info = run_json("index", "info", index)
    assert (info["images"], info["bits"], info["removed"]) == (40, 24, 0)
    assert info["model"] == str(digits_model)
    assert sum(info["labels"].values()) == 40
    assert info["unlabelled"] == 0
    assert f"bits            {info['bits']}\n" in run("index", "info", index)


def test_search_by_file_and_by_id(index: Path, photos: Path) -> None:
    file = next(photos.rglob("7.png"))
    for mode in ("hds", "acs", "bcs", "es"):
        answer = run_json("search", index, file, "7", "-k", 3, "--mode", mode)
        assert answer["mode"] == mode
        assert [result["query"] for result in answer["results"]] == [str(file), 7]
        for result in answer["results"]:
            assert len(result["hits"]) == 3
            first = result["hits"][0]
            assert (first["hamming"], first["metadata"]) == (0, {"lot": 1})
            assert (first["euclidean"] is None) == (mode in ("acs", "bcs"))
            assert (first["asymmetric"] is None) == (mode != "acs")
        assert mode in ("acs", "bcs") or answer["results"][1]["hits"][0]["id"] == 7
    text = run("search", index, file, "-k", 2)
    assert text.startswith(f"{file}: 2 found")
    assert str(file) in text.splitlines()[2]


def test_search_says_which_mode_it_took(
    index: Path, photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    file = next(photos.rglob("7.png"))
    best = Encoder.load(digits_model).mode or "hds"
    coded = best if best in ("acs", "bcs") else "acs"
    result = runner.invoke(app, ["search", str(index), str(file)])
    runs = "encoding with ONNX Runtime; HASHLENS_RUNTIME=torch takes PyTorch\n"
    told = f"{runs}mode {best}; choose another with --mode\n"
    assert (result.exit_code, result.stderr) == (0, told)
    assert runner.invoke(app, ["search", str(index), str(file), "--mode", "hds"]).stderr == runs
    codes = tmp_path / "codes.idx"
    run("index", "create", codes, photos, "--model", digits_model, "--features", "none")
    assert run_json("index", "info", codes)["feature_dim"] == 0
    result = runner.invoke(app, ["search", str(codes), str(file), "--radius", "20"])
    told = f"{runs}mode {coded}; choose another with --mode\n"
    assert (result.exit_code, result.stderr) == (0, told)
    assert run_json("search", codes, file)["mode"] == coded
    answer = run_json("search", codes, file, "-k", 3, "--mode", "acs")
    result = runner.invoke(app, ["search", str(codes), str(file), "--mode", "acs"])
    first = answer["results"][0]["hits"][0]
    assert f"{first['asymmetric']:.4g}" in result.stdout.splitlines()[2].split()
    assert run_json("search", codes, "7")["mode"] == "bcs"
    assert "use acs or bcs" in run("search", codes, "7", "--mode", "es", code=1)


def test_search_with_conditions_and_a_sheet(index: Path, tmp_path: Path) -> None:
    labels = HashIndex.open(index).label_counts()
    wanted = sorted(str(label) for label in labels)[:2]
    where = [word for label in wanted for word in ("--where", f"label={label}")]
    sheet = tmp_path / "sheet.png"
    command = ["search", index, "0", "1", "-k", 40, *where, "--where", "lot>=1", "--sheet", sheet]
    answer = run_json(*command)
    for result in answer["results"]:
        assert {hit["label"] for hit in result["hits"]} == set(wanted)
        assert len(result["hits"]) == sum(labels[label] for label in wanted)
    assert Image.open(sheet).width > 1000
    assert run_json("search", index, "0", "--where", "lot=2")["results"][0]["hits"] == []
    for condition in ("lot < 2", "lot >= 1", "lot = 1", "lot<2"):
        assert len(run_json("search", index, "0", "--where", condition)["results"][0]["hits"]) == 10
    nearest = run_json("search", index, "0", "--radius", 3, "-k", 40)["results"][0]["hits"]
    assert all(hit["hamming"] <= 3 for hit in nearest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "{index}", "0", "--mode", "fast"], "expected one of hds, acs, bcs, es"),
        (["search", "{index}", "0", "--mode", "es", "--radius", 2], "--radius goes with"),
        (["search", "{index}", "0", "--radius", "wide"], "a number of bits from 0, or proposed"),
        (["search", "{index}", "0", "--radius", "-1"], "a number of bits from 0, or proposed"),
        (["search", "{index}", "0", "--where", "lot"], "expected key=value"),
        (["search", "{index}", "0", "--where", "a=1", "--where", "a<2"], "both equal and"),
        (["index", "create", "{index}2", "--model", "{index}", "--features", "int4"], "float16"),
        (["index", "add", "{index}"], "expected at least one"),
        (["index", "update", "{index}", 3], "expected --label, --metadata or --image"),
        (["index", "export", "{index}", "{index}.x", "--format", "csv"], "faiss, parquet, numpy"),
    ],
)
def test_wrong_usage_ends_with_2(words: list[Any], message: str, index: Path) -> None:
    told = run(*[str(word).format(index=index) for word in words], code=2)
    assert message in " ".join(told.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "{index}", "nowhere.png"], "nowhere.png: no such file"),
        (["search", "{index}", "99"], "id 99: no such image in the index"),
        (["search", "nowhere.idx", "0"], "nowhere.idx: not an index, no such folder"),
        (["index", "add", "{index}", "nowhere"], "nowhere: no such file or folder"),
        (["index", "add", "{index}", __file__], "test_cli_index.py: not an image by its name"),
        (["index", "remove", "{index}", "nowhere.png"], "nothing was removed"),
        (["index", "remove", "{index}", "3", "99"], "no image in the index with id 99"),
        (["search", "{index}", 10**30], f"id {10**30}: no such image"),
        (["search", "x" * 300, "0"], "file name too long; check the name"),
        (["index", "add", "{index}", "x" * 300 + ".png"], "file name too long; check the name"),
        (["index", "add", "{index}", "digits", "--model", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_ends_with_1(words: list[Any], message: str, index: Path) -> None:
    told = run(*[str(word).format(index=index) for word in words], code=1)
    assert told.splitlines()[-1].startswith("error: ")
    assert message in told
    assert run_json("index", "info", index)["images"] == 40


def test_add_skips_what_is_there_and_what_is_unreadable(
    index: Path, photos: Path, tmp_path: Path
) -> None:
    assert run_json("index", "add", index, photos)["already_there"] == 40
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(next(photos.rglob("3.png")), new / "three.png")
    (new / "broken.png").write_text("no picture")
    result = run_json("index", "add", index, new, "--label", "mine", "--metadata", "note=a=b")
    assert (result["added"], result["images"]) == (1, 41)
    assert [Path(s["name"]).name for s in result["skipped"]] == ["broken.png"]
    hit = run_json("search", index, new / "three.png", "--where", "label=mine")["results"][0]
    assert hit["hits"][0]["metadata"] == {"note": "a=b"}
    assert "broken.png" in run("index", "add", index, new, "--strict", code=1)
    twice = tmp_path / "twice.png"
    shutil.copy(new / "three.png", twice)
    result = run_json("index", "add", index, twice, twice)
    assert (result["added"], result["already_there"], result["images"]) == (1, 1, 42)


def test_the_empty_name_removes_nothing(index: Path) -> None:
    """Images from memory have it."""
    with HashIndex.open(index) as opened:
        _, codes, features = opened.encoded([0, 1])
        opened.add_encoded(codes, features, ["", ""])
    assert "nothing was removed" in run("index", "remove", index, "", code=1)
    assert run_json("index", "info", index)["images"] == 42


def test_large_pictures_and_damaged_extras_are_no_matter(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(large)
    odd = tmp_path / "unsuffixed"  # with EXIF that ends too early
    Image.new("L", (9, 9)).save(odd, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    monkeypatch.setattr(sys, "argv", ["hashlens", "index", "add", str(index), str(large), str(odd)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SystemExit):
            main()
    said = capsys.readouterr()
    assert "added 2, skipped 0" in said.out
    assert "Warning" not in said.err


def test_names_that_are_no_text_are_printed(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = index.rename(index.with_name(os.fsdecode(b"caf\xe9.idx")))
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["hashlens", "index", "verify", os.fspath(odd)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert b"caf\\udce9.idx: intact, 40 images\n" in printed.buffer.getvalue()


def test_sync_follows_a_folder(
    index: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(photos, tmp_path / "copy")
    monkeypatch.setenv("HOME", str(tmp_path))
    first = run_json("index", "sync", index, "~/copy")
    assert (first["added"], first["images"]) == (40, 80)
    again = runner.invoke(app, ["index", "sync", str(index), str(folder), "--json"])
    assert (json.loads(again.stdout)["unchanged"], "0/?" in again.stderr) == (40, False)
    gone = next(folder.rglob("5.png"))
    gone.unlink()
    (folder / "empty.png").touch()
    result = run_json("index", "sync", index, folder)
    assert (result["removed"], result["added"], len(result["skipped"])) == (1, 0, 1)
    assert result["images"] == 79
    record = HashIndex.open(index).records()[-1]
    assert record.label == Path(record.uri).parent.name


def test_a_moved_folder_is_relocated_or_known_by_its_content(
    index: Path, photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    folder = shutil.copytree(photos, before / "photos")
    model = shutil.copytree(digits_model, before / "model")
    moving = tmp_path / "moving.idx"
    run("index", "create", moving, folder, "--model", model)
    run("index", "update", moving, 5, "--label", "mine")
    after = before.rename(tmp_path / "after é")
    result = runner.invoke(app, ["search", str(moving), "5"])
    assert (result.exit_code, result.stderr.count("10 of these files are gone")) == (0, 1)
    assert "hashlens index relocate" in result.stderr
    wrong = run("index", "relocate", moving, before, tmp_path / "nowhere", code=1)
    assert "has none of the 40 files" in wrong
    assert "nothing that comes from" in run("index", "relocate", moving, after, before, code=1)
    assert run_json("index", "relocate", moving, before, after)["relocated"] == 40
    assert "are gone" not in runner.invoke(app, ["search", str(moving), "5"]).stderr
    assert run_json("index", "info", moving)["model"] == str(after / "model")
    here = after / "photos"
    for place in (tmp_path / "third", tmp_path / "fourth" / "photos"):
        place.parent.mkdir(exist_ok=True)
        here = here.rename(place)
        synced = run_json("index", "sync", moving, here, "--model", digits_model)
        assert (synced["moved"], synced["added"], synced["images"]) == (40, 0, 40)
    records = HashIndex.open(moving).records()
    assert [record.id for record in records] == list(range(40))
    assert records[5].label == "mine"
    assert all(Path(record.uri).is_file() for record in records)


def test_copies_that_moved_keep_their_own_ids(
    photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    folder, index = tmp_path / "twins", tmp_path / "twins.idx"
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(photos.rglob("7.png")), folder / name)
    run("index", "create", index, folder, "--model", digits_model)
    folder.rename(tmp_path / "moved")
    assert run_json("index", "sync", index, tmp_path / "moved")["moved"] == 3
    assert [Path(record.uri).parts[-2:] for record in HashIndex.open(index).records()] == [
        ("a", "1.png"), ("b", "1.png"), ("b", "2.png")
    ]  # fmt: skip


def test_a_folder_is_removed(index: Path, photos: Path) -> None:
    folder = photos / "digit 3"
    held = len(list(folder.iterdir()))
    assert len(run_json("index", "remove", index, f"{folder}/")["removed"]) == held
    assert "nothing was removed" in run("index", "remove", index, folder, code=1)
    assert len(run_json("index", "remove", index, photos)["removed"]) == 40 - held


def test_a_label_that_no_image_has_is_told(index: Path) -> None:
    result = runner.invoke(app, ["search", str(index), "0", "--where", "label=Digit  3"])
    assert (result.exit_code, "0 found" in result.stdout) == (0, True)
    assert "note: no image has the label 'Digit  3'; like it are digit 3" in result.stderr
    result = runner.invoke(app, ["search", str(index), "0", "--where", "prize<5"])
    assert "none of the first 40 images has metadata 'prize'; they have lot" in result.stderr
    with HashIndex.open(index) as opened:
        opened.update(4, label="1")
        opened.update(5, label="true")
        assert opened.search(0, 40, where={"label": True}) == []
    result = runner.invoke(app, ["search", str(index), "0", "--where", "lot<5"])
    assert "note: none" not in result.stderr
    for word, image in (("1", 4), ("true", 5)):
        hits = run_json("search", index, "0", "--where", f"label={word}")["results"][0]["hits"]
        assert [hit["id"] for hit in hits] == [image]


def test_a_folder_is_many_queries(index: Path, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos / "digit 3", tmp_path / "queries")
    count = len(list(folder.iterdir()))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").touch()
    result = runner.invoke(app, ["search", str(index), str(folder), "7", "-k", "1", "--json"])
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["results"]) == count + 1
    assert "skipped" in result.stderr
    assert "passed over 1" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "no images found there" in run("search", index, tmp_path / "empty", code=1)


def test_summaries_count_what_was_passed_over(
    photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    folder, index = shutil.copytree(photos, tmp_path / "copy"), tmp_path / "shop.idx"
    for name in ("a.cr2", "b.cr2", "c.mov", "notes", "@eaDir/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    told = "passed over 4 (.cr2 2, .mov 1, no suffix 1)"
    command = ["index", "create", index, folder, "--model", digits_model]
    result = runner.invoke(app, [str(word) for word in command])
    assert result.stdout == f"added 40, skipped 0, {told}; {index} holds 40 images\n"
    assert "camera RAW is not read" in result.stderr
    assert "left out 1 system folders: @eaDir" in result.stderr
    assert told in run("index", "sync", index, folder)
    counted = run_json("index", "add", index, folder, "--exclude", "*.cr2")["passed_over"]
    assert counted == {".mov": 1, "no suffix": 1}
    synced = run_json("index", "sync", index, folder, "--exclude", "digit 3")
    assert synced["removed"] == len(list((folder / "digit 3").iterdir()))


def test_a_file_of_metadata_is_joined_by_name(
    photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    index, file = tmp_path / "shop.idx", tmp_path / "prices.csv"
    named = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    rows = [f"{name},{10 * i},no {i}" for i, name in enumerate(named[1:])]
    file.write_text("\n".join(["file,price,brand", *rows, "none.png,1,"]))
    command = ["index", "create", index, photos, "--model", digits_model, "--metadata", file]
    result = runner.invoke(app, [str(word) for word in [*command, "--metadata", "lot=1"]])
    assert result.exit_code == 0, result.output
    assert "found 39 of 40 images, 1 of its 40 rows name no image here" in result.stderr
    words = ["search", index, "0", "--where", "brand<50", "--where", "price<50"]
    said = runner.invoke(app, [str(word) for word in words]).stderr
    assert "metadata 'brand' holds words, such as 'no " in said
    assert "'price'" not in said
    found = run_json("search", index, "0", "-k", 40, "--where", "price<50")["results"][0]["hits"]
    assert sorted(hit["metadata"]["price"] for hit in found) == [0, 10, 20, 30, 40]
    assert all(set(hit["metadata"]) == {"price", "brand", "lot"} for hit in found)


def test_a_table_brings_labels_and_metadata(
    photos: Path, digits_model: Path, tmp_path: Path
) -> None:
    index, file = tmp_path / "shop.idx", tmp_path / "images.csv"
    paths = sorted(photos.rglob("*.png"))
    rows = [f"{path},{i % 2},{i}" for i, path in enumerate(paths)]
    file.write_text("\n".join(["path,kind,n", *rows]))
    run("index", "create", index, file, "--model", digits_model, "--label-column", "kind")
    assert run_json("index", "info", index)["labels"] == {"0": 20, "1": 20}
    hits = run_json("search", index, "3", "-k", 1, "--where", "n=3")["results"][0]["hits"]
    assert [hit["uri"] for hit in hits] == [str(paths[3])]


def test_remove_update_compact_verify(index: Path, photos: Path) -> None:
    file = next(photos.rglob("9.png"))
    ids = HashIndex.open(index).uris()
    removed = run_json("index", "remove", index, "0", file)["removed"]
    assert sorted(removed) == sorted([0, *ids[str(file)]])
    other = next(i for i in range(1, 40) if i not in removed)
    updated = run_json("index", "update", index, other, "--label", "x", "--metadata", "price=2.5")
    assert updated["label"] == "x"
    assert updated["metadata"] == {"lot": 1, "price": 2.5}
    assert run_json("index", "update", index, other, "--image", file)["uri"] == str(file)
    assert run_json("index", "compact", index)["dropped"] == 3
    assert run_json("index", "verify", index) == {
        "index": str(index), "intact": True, "damage": []
    }  # fmt: skip
    data = bytearray((index / "features.2").read_bytes())
    data[5] ^= 1
    (index / "features.2").write_bytes(data)
    result = runner.invoke(app, ["index", "verify", str(index), "--json"])
    assert result.exit_code == 1
    assert "features.2: block 0" in json.loads(result.stdout)["damage"][0]


def _equal_files(index: HashIndex) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for record in index:
        groups.setdefault(Path(record.uri).read_bytes(), []).append(record.id)
    return [group for group in groups.values() if len(group) > 1]


def test_the_version_and_completion_for_a_shell() -> None:
    assert run("--version") == f"hashlens {__version__}\n"
    assert "--install-completion" in run("--help")
    completed = CliRunner(
        env={"_HASHLENS_COMPLETE": "complete_bash", "COMP_WORDS": "hashlens ser", "COMP_CWORD": "1"}
    ).invoke(app, prog_name="hashlens")
    assert completed.stdout.split() == ["serve"]


def test_the_environment_sets_options_of_serve(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASHLENS_PORT", "99999")
    told = run("serve", index, code=2)
    assert "'--port'" in told
    assert "65535" in told


def test_duplicates_and_export(index: Path, photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.png"
    shutil.copy(next(photos.rglob("4.png")), twin)
    told = runner.invoke(app, ["index", "add", str(index), str(twin)]).stderr
    assert "note: 1 of these pictures were in the index already under another name" in told
    assert "hashlens index remove" in told
    found = run_json("index", "duplicates", index, "--radius", 0, "--sheet", tmp_path / "d.png")
    assert any(40 in group for group in found["copies"])
    assert Image.open(tmp_path / "d.png").width > 100
    text = run("index", "duplicates", index, "--radius", 0)
    assert f"in {tmp_path.parent}" in text or "in /" in text
    assert {tuple(group) for group in found["copies"]} == {
        tuple(sorted(group)) for group in _equal_files(HashIndex.open(index))
    }
    assert "groups of exact copies: 1; of pictures that look alike: " in text
    assert "page: " in run("index", "duplicates", index, "--out", tmp_path / "twins")
    assert "twin.png" in (tmp_path / "twins" / "duplicates.html").read_text()
    for kind in ("faiss", "parquet", "numpy"):
        result = run_json("index", "export", index, tmp_path / kind, "--format", kind)
        assert result["images"] == 41
        assert (tmp_path / kind).exists()
    assert "exists already" in run("index", "export", index, tmp_path / "faiss", code=1)


def test_another_model_is_refused(index: Path, photos: Path, digits_model: Path) -> None:
    """The same network with other weights has other codes."""
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(digits_model, index.with_name("other-model"))
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["latent.bias"] = tensors["latent.bias"] + 1
    save_file(tensors, weights)
    told = run("search", index, next(photos.rglob("1.png")), "--model", other, code=1)
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1


def test_a_moved_model_is_named(photos: Path, digits_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(digits_model, tmp_path / "model")
    index = tmp_path / "x.idx"
    run("index", "create", index, photos, "--model", model)
    model.rename(tmp_path / "elsewhere")
    file = next(photos.rglob("1.png"))
    assert "say where with --model" in run("search", index, file, code=1)
    assert run("search", index, "1").startswith("1: 10 found")  # ids need no model
    run("search", index, file, "--model", tmp_path / "elsewhere")
