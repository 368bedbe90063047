"""Shards answer as one index does, are changed by versions, and never lose the one before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden_files import FOLDER
from hashlens import (
    Encoder,
    HashIndex,
    IndexStoreError,
    InvalidInputError,
    SearchOptions,
    SourceError,
    unpack_bits,
)
from hashlens.distributed import snapshots
from hashlens.distributed.sharded import ShardedIndex, merge
from hashlens.distributed.snapshots import (
    Answers,
    OpenShards,
    publishing,
    read_manifest,
    reshard,
    write_manifest,
)
from hashlens.files import file_state
from hashlens.types import Codes, EncodedBatch, Features, ImageInput, SearchResult, SearchTrace

from .sharded_folders import BITS, DIM, make_shards, numbered, part

BOUNDS = [0, 250, 260, 600]
MODES = ("bcs", "acs", "hds", "es")


@pytest.fixture(scope="module")
def sharded(images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ShardedIndex:
    """The same images in three shards; for tests that do not change it."""
    folder = tmp_path_factory.mktemp("sharded")
    make_shards(folder, images, BOUNDS)
    return ShardedIndex.open(folder, read_only=True)


def _queries(images: dict[str, Any], n: int = 7) -> tuple[Any, Any, Any]:
    """Codes, features, and latent values of these codes, as unsure as one likes."""
    codes = images["codes"][:n]
    sure = np.random.default_rng(0).random((n, BITS), np.float32)
    return codes, images["features"][3 : n + 3], np.where(unpack_bits(codes, BITS), sure, -sure)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [None, {"label": "dog"}, {"label": "dog", "shelf": [1, 4]}])
@pytest.mark.parametrize("leave_out", [False, True])
def test_it_answers_as_one_index_does_or_nearer(
    sharded: ShardedIndex,
    one: HashIndex,
    images: dict[str, Any],
    mode: Any,
    where: Any,
    leave_out: bool,
) -> None:
    codes, features, latent = _queries(images)
    for k in (1, 10, 700):
        for limits in ({}, {"pool": 15}, {"radius": 2}):
            if (mode == "es" and limits) or (mode == "bcs" and "pool" in limits):
                continue
            options = SearchOptions(k, mode=mode, where=where, **limits)
            own, theirs = options, options
            if leave_out:
                rows = np.arange(len(codes))
                own = SearchOptions(k, mode=mode, where=where, exclude=rows, **limits)
                theirs = SearchOptions(
                    k, mode=mode, where=where, exclude=numbered(rows, BOUNDS), **limits
                )
            expected = one.search_encoded(codes, features, own, latent)
            got = sharded.search_encoded(codes, features, theirs, latent)
            assert not got.missing
            width = min(got.ids.shape[1], expected.ids.shape[1])
            exact = mode in ("bcs", "es") or "radius" in limits
            if exact:
                np.testing.assert_array_equal(
                    got.ids[:, :width], numbered(expected.ids[:, :width], BOUNDS)
                )
            # pools of three shards hold that of one index: never farther, rank by rank
            assert (got.distances[:, :width] <= expected.distances[:, :width]).all()
            trace = SearchTrace()
            hits = sharded.search_hits(codes, features, theirs, latent, trace)
            for query, found in zip(got.ids.tolist(), hits, strict=True):
                assert [hit.id for hit in found] == [each for each in query if each >= 0]
            if leave_out:
                assert not (got.ids == numbered(np.arange(len(codes)), BOUNDS)[:, None]).any()


def test_what_is_stored_is_read_as_from_one_index(
    sharded: ShardedIndex, one: HashIndex, images: dict[str, Any]
) -> None:
    assert len(sharded) == len(one) == 600
    assert sharded.ids().tolist() == numbered(one.ids(), BOUNDS).tolist()
    wanted = numbered([599, 0, 255], BOUNDS).tolist()
    for got, expected in zip(sharded.records(wanted), one.records([599, 0, 255]), strict=True):
        assert got[1:] == expected[1:]
    assert [record.uri for record in sharded] == [record.uri for record in one]
    for got, expected in zip(
        sharded.encoded(wanted)[1:], one.encoded([599, 0, 255])[1:], strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    assert list(sharded.uris()) == list(one.uris())
    assert sharded.label_counts() == one.label_counts()
    assert sharded.info().images == one.info().images
    assert sharded.verify() == []
    assert sharded.duplicates(1).pairs == one.duplicates(1).pairs
    for exclude in (None, 255):
        own = None if exclude is None else int(numbered([exclude], BOUNDS)[0])
        np.testing.assert_array_equal(
            sharded.histogram(images["codes"][0], {"label": "cat"}, own),
            one.histogram(images["codes"][0], {"label": "cat"}, exclude),
        )
    mine, theirs = sharded.to_arrow(), one.to_arrow()
    assert mine.schema.equals(theirs.schema)
    assert mine.drop_columns("id").equals(theirs.drop_columns("id"))
    found = sharded.search(wanted[:2], k=5, mode="es")
    assert [hit.uri for hit in found[1]] == [hit.uri for hit in one.search(0, k=5, mode="es")]


def test_a_key_of_another_type_in_each_shard_is_text_in_the_table(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, BOUNDS)
    with ShardedIndex.open(tmp_path) as opened:
        for place, size in ((0, 38), (300, "M"), (599, None)):
            opened.update(int(numbered([place], BOUNDS)[0]), metadata={"size": size})
        found = dict(zip(opened.uris(), opened.to_arrow()["size"].to_pylist(), strict=True))
    assert sorted(each for each in found.values() if each is not None) == ["38", "M"]


def test_errors_name_what_is_wrong(sharded: ShardedIndex, tmp_path: Path) -> None:
    codes = np.zeros((1, 2), np.uint8)
    with pytest.raises(InvalidInputError, match="features"):
        sharded.search_encoded(codes, None, SearchOptions(3, mode="es"))
    with pytest.raises(InvalidInputError, match="2 bytes"):
        sharded.search_encoded(np.zeros((1, 3), np.uint8), None, SearchOptions(3, mode="bcs"))
    for unknown in (3 << 40, -1, 250):
        with pytest.raises(InvalidInputError, match=r"no (such )?image in the index"):
            sharded.get(unknown)
    for value in (True, "3", [3]):
        with pytest.raises(InvalidInputError, match="expected one whole number"):
            sharded.get(value)  # type: ignore[arg-type]
    with pytest.raises(IndexStoreError, match="hashlens index reshard"):
        sharded.export(tmp_path / "x.faiss", "faiss")
    with pytest.raises(IndexStoreError, match="hashlens index add"):
        sharded.sync(tmp_path, [])
    with pytest.raises(IndexStoreError, match="opened read-only"):
        sharded.remove([1])

    class OtherModel:
        bits, feature_dim, fingerprint = 2 * BITS, DIM, "0" * 64

    with pytest.raises(IndexStoreError, match="use the index's own model"):
        ShardedIndex.open(sharded.path, OtherModel())  # type: ignore[arg-type]


def _damage(folder: Path, position: int) -> None:
    """Cut the codes of a shard."""
    shard = folder / read_manifest(folder).shards[position].folder
    (codes,) = shard.glob("codes.*")
    codes.write_bytes(codes.read_bytes()[:7])


def test_a_shard_that_cannot_be_read_is_named_and_the_others_answer(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, BOUNDS)
    codes, features, _ = _queries(images)
    options = SearchOptions(600, mode="bcs")
    expected = ShardedIndex.open(tmp_path).search_encoded(codes, features, options)
    _damage(tmp_path, 1)
    index, trace = ShardedIndex.open(tmp_path, require_all=False), SearchTrace()
    found = index.search_encoded(codes, features, options)
    assert found.missing
    assert found.missing == ("shard-0001",)
    for got, whole in zip(found.ids, expected.ids, strict=True):
        np.testing.assert_array_equal(got[got >= 0], whole[whole >> 40 != 1])
    hits = index.search_hits(codes, features, options, trace=trace)
    assert trace.missing == ["shard-0001"]
    assert [[hit.id for hit in each] for each in hits] == [
        [image_id for image_id in each if image_id >= 0] for each in found.ids.tolist()
    ]
    assert index.histogram(codes[0]).sum() == 590
    for whole_only in (index.ids, index.encoded, lambda: index.get(1 << 40)):
        with pytest.raises(IndexStoreError, match=r"shard-0001: .*codes"):
            whole_only()
    with pytest.raises(IndexStoreError, match=r"shard-0001: .*codes"):
        ShardedIndex.open(tmp_path).search_encoded(codes, features, options)
    for position in (0, 2):
        _damage(tmp_path, position)
    with pytest.raises(IndexStoreError, match=r"shard-000\d: .*codes"):
        ShardedIndex.open(tmp_path, require_all=False).search_encoded(codes, features, options)


def test_the_command_names_a_shard_that_cannot_be_read_or_fails(
    images: dict[str, Any], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from hashlens.cli.main import app

    make_shards(tmp_path, images, BOUNDS)
    search = ["search", str(tmp_path), "0", "--mode", "bcs", "-k", "3", "--where", "shelf=0"]

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, [*search, *more])

    assert json.loads(run("--json").stdout)["missing"] == []
    (tmp_path / read_manifest(tmp_path).shards[2].folder / "index.sqlite").write_bytes(b"x")
    answer = json.loads(run("--json").stdout)
    assert answer["missing"] == ["shard-0002"]
    assert len(answer["results"][0]["hits"]) == 3
    assert "without the images of shard-0002" in run().stderr
    failed = run("--require-all")
    assert failed.exit_code == 1
    assert "shard-0002" in failed.stderr


class SizeEncoder:
    """Codes and features that depend on the size of a file alone."""

    bits, feature_dim, fingerprint = BITS, DIM, ""

    def encode(self, images: Sequence[ImageInput]) -> tuple[Codes, Features]:
        sizes = [len(image) if isinstance(image, bytes) else _size(image) for image in images]
        codes = np.array([[size % 256, 0] for size in sizes], np.uint8).reshape(-1, 2)
        return codes, np.repeat(np.array(sizes, np.float32)[:, None], DIM, axis=1)

    def encode_batches(
        self, images: Any, *, batch_size: int = 64, strict: bool = False
    ) -> Iterator[EncodedBatch]:
        listed = list(images)
        if listed:
            files = tuple(map(file_state, listed))
            yield EncodedBatch(np.arange(len(listed)), *self.encode(listed), None, (), files)


def _size(image: Any) -> int:
    return Path(image).stat().st_size


def test_it_is_changed_as_one_index_is(
    images: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.jpg").write_bytes(b"x" * 77)
    make_shards(tmp_path / "sharded", images, BOUNDS)
    sharded = ShardedIndex.open(tmp_path / "sharded", SizeEncoder())
    with HashIndex.create(tmp_path / "plain", SizeEncoder()) as plain:
        plain.add_encoded(**images)
        before = sharded.manifest.version
        for index, ids in ((sharded, numbered(np.arange(600), BOUNDS)), (plain, np.arange(600))):
            added = index.add(["new.jpg", b"in memory"], ["new", None]).ids
            index.update(int(ids[3]), label="boots", metadata={"price": 20})
            index.update(int(ids[255]), image="new.jpg")
            codes = np.array([[7, 7], [8, 8]], np.uint8)
            index.replace_encoded(ids[[599, 1]], codes, np.ones((2, DIM)))
            index.remove(ids[[0, 259, 300]])
            with pytest.raises(InvalidInputError, match="in the index"):
                index.remove(ids[[0, 4]])
            assert index.compact() > 0
            assert index.verify() == []
            assert index.get(int(added[0])).uri == str(tmp_path / "new.jpg")
            assert index.file_digest(int(added[0])) is not None
        assert (np.diff(added) == 1).all()
        assert len(sharded) == len(plain) == 599
        assert sharded.manifest.version == before + 6
        key = {record.uri: record[2:] for record in plain if record.uri}
        assert {record.uri: record[2:] for record in sharded if record.uri} == key
        codes, features, _ = _queries(images)
        options = SearchOptions(50, mode="es")
        np.testing.assert_array_equal(
            sharded.search_encoded(codes, features, options).distances,
            plain.search_encoded(codes, features, options).distances,
        )
    sharded.add_shard()
    new = sharded.add_encoded(**part(images, 0, 3))
    assert (new >> 40 == 3).all()  # the emptiest


def test_a_reader_goes_on_while_versions_are_published(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, BOUNDS)
    reader, writer = ShardedIndex.open(tmp_path, read_only=True), ShardedIndex.open(tmp_path)
    codes, features, _ = _queries(images)
    options = SearchOptions(5, mode="es")
    for step in range(4):
        assert len(reader.search_encoded(codes, features, options).ids) == len(codes)
        before = writer.manifest.shards
        (new,) = writer.add_encoded(codes[:1], np.full((1, DIM), 90.0 + step), [f"new{step}"])
        found = reader.search_encoded(codes[:1], np.full((1, DIM), 90.0 + step), options)
        assert found.ids[0, 0] == new
        assert len(reader) == 601 + step
    kept = {path.name for path in tmp_path.glob("shard-*.v*")}
    assert kept == {shard.folder for shard in (*writer.manifest.shards, *before)}


def test_a_search_that_began_on_a_version_ends_on_it(
    images: dict[str, Any], tmp_path: Path
) -> None:
    """A version is published between what two shards are asked: both answer from one version."""
    make_shards(tmp_path, images, [0, 300, 600])
    writer = ShardedIndex.open(tmp_path)

    class PublishingBetween(OpenShards):
        def ask(self, calls: Any, *, patient: bool = False) -> Answers:
            values = {}
            for position in calls:
                values |= super().ask({position: calls[position]}).values
                writer.remove([(1 << 40) + position])
            return Answers(values, {})

    index = ShardedIndex(tmp_path, shards=PublishingBetween(tmp_path))
    assert len(index.ids()) == 600
    assert len(ShardedIndex.open(tmp_path).ids()) == 598


def test_a_copy_is_whole_though_two_versions_follow_meanwhile(
    images: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path / "a", images, BOUNDS)
    index = ShardedIndex.open(tmp_path / "a")
    followed = []

    def read_and_be_late(folder: Path) -> Any:
        manifest = read_manifest(folder)
        if not followed:
            followed.append(manifest)
            for _ in range(2):
                index.add_encoded(**part(images, 0, 1))
            assert not (folder / manifest.shards[1].folder).exists()
        return manifest

    monkeypatch.setattr(snapshots, "read_manifest", read_and_be_late)
    assert index.copy(tmp_path / "b") == 602
    copied = ShardedIndex.open(tmp_path / "b")
    assert len(copied.ids()) == 602
    assert copied.verify() == []


def test_changes_of_several_are_one_version_and_a_wrong_one_is_its_own(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, BOUNDS)
    index = ShardedIndex.open(tmp_path)
    before = index.manifest.version
    assert index.together([methodcaller("remove", [i]) for i in range(20)]) == [None] * 20
    assert (index.manifest.version, len(index)) == (before + 1, 580)
    first, wrong, last = index.together([methodcaller("remove", [i]) for i in (20, 3, 21)])
    assert (first, last, len(index)) == (None, None, 578)
    assert isinstance(wrong, InvalidInputError)
    assert index.together([ShardedIndex.add_shard] * 2) == [None, None]
    assert len(index.manifest.shards) == 5


def test_a_damaged_shard_is_not_copied(images: dict[str, Any], tmp_path: Path) -> None:
    make_shards(tmp_path / "a", images, BOUNDS)
    _damage(tmp_path / "a", 1)
    with pytest.raises(IndexStoreError, match="codes"):
        ShardedIndex.open(tmp_path / "a").copy(tmp_path / "b")
    assert not (tmp_path / "b" / "shards.json").exists()


def test_resharding_that_fails_leaves_nothing(images: dict[str, Any], tmp_path: Path) -> None:
    make_shards(tmp_path / "a", images, BOUNDS)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    for shards in (2, None):
        with pytest.raises(KeyboardInterrupt):
            reshard(tmp_path / "a", tmp_path / "b", shards, progress=stop)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_older_version_reads_as_before_though_files_are_shared(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, [0, 600])
    (old,) = read_manifest(tmp_path).shards
    index = ShardedIndex.open(tmp_path)
    index.add_encoded(**part(images, 0, 40))
    kept = index.manifest.shards[0].folder
    index.remove([3])
    with HashIndex.open(tmp_path / kept, read_only=True) as before:
        assert len(before) == 640
        assert before.verify() == []
    assert not list((tmp_path / index.manifest.shards[0].folder).glob("*-wal"))
    assert old.folder != kept


def test_what_fails_halfway_publishes_nothing(images: dict[str, Any], tmp_path: Path) -> None:
    make_shards(tmp_path, images, BOUNDS)
    before, content = read_manifest(tmp_path), {path.name for path in tmp_path.iterdir()}

    def add_and_fail() -> None:
        with publishing(tmp_path) as publication:
            publication.shard(0).add_encoded(**part(images, 0, 5))
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        add_and_fail()
    assert read_manifest(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} - {"shards.lock"} == content
    index = ShardedIndex.open(tmp_path)
    index.add_encoded(**part(images, 0, 5))
    assert index.verify() == []
    assert len(index) == 605


def test_a_snapshot_that_no_manifest_names_is_never_read(
    images: dict[str, Any], tmp_path: Path
) -> None:
    make_shards(tmp_path, images, BOUNDS)
    before = read_manifest(tmp_path)
    with publishing(tmp_path) as publication:
        publication.shard(1).add_encoded(**part(images, 0, 5))
    write_manifest(tmp_path, before)  # as if the machine had gone before the last step
    index = ShardedIndex.open(tmp_path)
    assert len(index) == 600
    index.add_encoded(**part(images, 0, 7))
    assert len(index) == 607
    assert index.verify() == []


def test_a_second_writer_is_told_who_is_at_it(images: dict[str, Any], tmp_path: Path) -> None:
    make_shards(tmp_path, images, BOUNDS)
    with publishing(tmp_path), pytest.raises(IndexStoreError, match=r"process \d+ on .* changing"):
        ShardedIndex.open(tmp_path).remove([1])
    ShardedIndex.open(tmp_path).remove([1])


def test_while_the_storage_is_away_nothing_is_changed_or_made_there(
    images: dict[str, Any], tmp_path: Path
) -> None:
    folder, away = tmp_path / "a", tmp_path / "away"
    make_shards(folder, images, BOUNDS)
    index = ShardedIndex.open(folder)
    folder.rename(away)
    for call in (lambda: index.remove([1]), index.ids, lambda: index.search(0)):
        with pytest.raises(IndexStoreError, match=r"no such (file|folder)"):
            call()
    assert len(index) == 600  # as the manifest said
    assert not folder.exists()
    away.rename(folder)
    index.remove([1])
    assert len(index.search(0, k=600)) == len(index.ids()) == 599


def test_a_copy_is_brought_up_to_date(images: dict[str, Any], tmp_path: Path) -> None:
    make_shards(tmp_path / "a", images, BOUNDS)
    index = ShardedIndex.open(tmp_path / "a")
    (tmp_path / "a" / "uploads").mkdir()
    (tmp_path / "a" / "uploads" / "given.jpg").write_bytes(b"given")
    assert index.copy(tmp_path / "b") == 600
    assert (tmp_path / "b" / "uploads" / "given.jpg").read_bytes() == b"given"
    index.add_encoded(**part(images, 0, 5))
    assert index.copy(tmp_path / "b") == 605
    copied = ShardedIndex.open(tmp_path / "b")
    assert copied.ids().tolist() == index.ids().tolist()
    assert copied.verify() == []
    for _ in range(4):
        index.add_encoded(**part(images, 0, 5))
        index.copy(tmp_path / "b")
    assert len(list((tmp_path / "b").glob("shard-*.v*"))) == 4  # three, and the one before
    assert ShardedIndex.open(tmp_path / "b").verify() == []
    make_shards(tmp_path / "other", images, BOUNDS)
    other = read_manifest(tmp_path / "other")
    with pytest.raises(IndexStoreError, match="got another index"):
        index.copy(tmp_path / "other")
    assert read_manifest(tmp_path / "other") == other
    ShardedIndex.open(tmp_path / "b").remove([1])
    with pytest.raises(IndexStoreError, match="a copy that was changed"):
        index.copy(tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(IndexStoreError, match="exists already"):
        index.copy(tmp_path / "full")


def test_shards_behind_a_uri_are_fetched(
    images: dict[str, Any], object_store: Any, tmp_path: Path
) -> None:
    make_shards(tmp_path / "a", images, BOUNDS)
    index = ShardedIndex.open(tmp_path / "a")
    for added in range(0, 20, 5):
        object_store.put(f"{tmp_path}/a/", "/shop.idx/", recursive=True)
        manifest = read_manifest("memory://shop.idx")
        shards = OpenShards("memory://shop.idx")
        for published in manifest.shards:
            assert len(shards.ask_one(published.folder, HashIndex.ids)) == published.images
        assert manifest == index.manifest
        assert manifest.images == 600 + added
        index.add_encoded(**part(images, 0, 5))
    with pytest.raises(SourceError, match="cannot be read"):
        read_manifest("memory://nowhere")


def test_resharding_keeps_images_and_what_is_known(images: dict[str, Any], tmp_path: Path) -> None:
    with HashIndex.create(tmp_path / "one", SizeEncoder(), features="float32") as one:
        one.add_encoded(**images)
        (tmp_path / "new.jpg").write_bytes(b"x" * 77)
        one.add([tmp_path / "new.jpg"])
        one.remove([5])
        expected = [record[1:] for record in one]
        digest = one.file_digest(600)
        arrays = one.encoded()
    assert reshard(tmp_path / "one", tmp_path / "four", 4) == 600
    four = ShardedIndex.open(tmp_path / "four")
    assert [shard.images for shard in four.manifest.shards] == [150] * 4
    assert reshard(tmp_path / "four", tmp_path / "again", None) == 600
    with HashIndex.open(tmp_path / "again") as again:
        assert again.file_digest(599) == digest
        for index in (four, again):
            assert [record[1:] for record in index] == expected
            for got, wanted in zip(index.encoded()[1:], arrays[1:], strict=True):
                np.testing.assert_array_equal(got, wanted)
    with pytest.raises(InvalidInputError, match="expected 1 to 600"):
        reshard(tmp_path / "one", tmp_path / "many", 601)
    with pytest.raises(IndexStoreError, match="exists already"):
        reshard(tmp_path / "one", tmp_path / "four", 2)


def test_shards_that_version_0_1_0_wrote_are_named_and_converted(tmp_path: Path) -> None:
    old = shutil.copytree(FOLDER / "shards.idx", tmp_path / "shards.idx")
    with pytest.raises(IndexStoreError, match=r"older form.*`hashlens index reshard .* NEW"):
        ShardedIndex.open(old)
    encoder = Encoder.load(FOLDER / "model")
    photos = shutil.copytree(FOLDER / "photos.idx", tmp_path / "photos.idx")
    with HashIndex.open(photos) as expected:
        known = {record.uri: record[2:] for record in expected}
        codes = dict(zip(known, map(bytes, expected.encoded()[1]), strict=True))
    assert reshard(old, tmp_path / "one.idx", None) == 9
    with HashIndex.open(tmp_path / "one.idx", encoder) as index:
        assert {record.uri: record[2:] for record in index} == known
        uris = [record.uri for record in index]
        assert dict(zip(uris, map(bytes, index.encoded()[1]), strict=True)) == codes
        assert index.verify() == []
    assert reshard(old, tmp_path / "new.idx", 2) == 9
    assert len(ShardedIndex.open(tmp_path / "new.idx", encoder).search(0, k=9, mode="es")) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a manifest"),
        ("[" * 100_000, "not a manifest"),
        ("[]", "expected format version 2, got None"),
        ('{"format_version": 9}', "expected format version 2, got 9"),
        ('{"format_version": 2}', "missing or of the wrong type"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(IndexStoreError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../other", "/etc", "", ".new-x", 7])
def test_a_manifest_names_folders_next_to_it_alone(
    images: dict[str, Any], tmp_path: Path, name: Any
) -> None:
    make_shards(tmp_path, images, [0, 600])
    content = json.loads((tmp_path / "shards.json").read_text())
    content["shards"][0]["folder"] = name
    (tmp_path / "shards.json").write_text(json.dumps(content))
    with pytest.raises(IndexStoreError, match="name of a folder next to it"):
        read_manifest(tmp_path)


def test_merging_puts_padding_last_and_ties_by_id() -> None:
    left = SearchResult(np.array([[4, -1]]), np.array([[65535, 65535]], np.uint16))
    right = SearchResult(np.array([[2, 9]]), np.array([[1, 65535]], np.uint16))
    found = merge([left, right], 4)
    assert found.ids.tolist() == [[2, 4, 9, -1]]
    assert found.distances.tolist() == [[1, 65535, 65535, 65535]]
