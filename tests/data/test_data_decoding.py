"""Decoding many: order, gaps, strictness, and how far a stream is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashlens import ImageError, InvalidInputError, open_source
from hashlens.data.decoding import decode_source, iter_decoded
from hashlens.data.opening import load_image
from hashlens.data.preprocessing import Preprocessing
from hashlens.types import ImageInput
from image_builders import encoded, picture

SMALL = Preprocessing(12)


def test_a_source_is_decoded_in_order(class_folder: Path) -> None:
    source = open_source(class_folder)
    decoded = decode_source(source, SMALL)
    assert decoded.pixels.shape == (36, 12, 12, 3)
    assert decoded.positions.tolist() == list(range(36))
    assert decoded.skipped == ()
    for i in (0, 17, 35):
        assert np.array_equal(decoded.pixels[i], SMALL.pixels(source.load(i)))


def test_some_rows_count_from_zero(class_folder: Path) -> None:
    source = open_source(class_folder)
    decoded = decode_source(source, SMALL, [30, 3])
    assert decoded.positions.tolist() == [0, 1]
    assert np.array_equal(decoded.pixels[0], SMALL.pixels(source.load(30)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(broken=st.sets(st.integers(0, 99)), batch_size=st.integers(1, 120))
def test_gaps_close_and_every_broken_image_is_named(
    tmp_path: Path, broken: set[int], batch_size: int
) -> None:
    data: list[ImageInput] = [np.full((4, 4), i, np.uint8) for i in range(100)]
    for i in broken:
        data[i] = b"no picture"
    grey = Preprocessing(2, 1, (0.5,), (0.5,))
    seen, skipped = [], []
    for batch in iter_decoded(data, grey, batch_size):
        assert len(batch.pixels) == len(batch.positions) <= batch_size
        assert (batch.pixels[:, 0, 0, 0] == batch.positions).all()
        seen += batch.positions.tolist()
        skipped += batch.skipped
    assert seen == sorted(set(range(100)) - broken)
    assert [one.position for one in skipped] == sorted(broken)
    for one in skipped:
        assert one.name == f"bytes at position {one.position}"
        assert one.reason == "not an image in a known format"


def test_broken_files_of_a_source_are_skipped_and_listed(
    class_folder: Path, bad_images: dict[str, Path]
) -> None:
    for path in bad_images.values():
        path.rename(class_folder / "cross" / path.name)
    source = open_source(class_folder)
    decoded = decode_source(source, SMALL)
    assert len(source) == 36 + len(bad_images)
    assert len(decoded.pixels) == 36
    assert {Path(one.name).name for one in decoded.skipped} == {p.name for p in bad_images.values()}
    for one in decoded.skipped:
        assert source.uris[one.position] == one.name
        assert one.reason
    for i, position in enumerate(decoded.positions.tolist()):
        assert np.array_equal(decoded.pixels[i], SMALL.pixels(source.load(position)))


def test_strict_stops_at_the_first_broken_image(class_folder: Path) -> None:
    (class_folder / "cross" / "005.png").write_bytes(b"")
    source = open_source(class_folder)
    with pytest.raises(ImageError, match=r"cross/005\.png: empty"):
        decode_source(source, SMALL, strict=True)
    batches = iter_decoded(source.uris, SMALL, 10, strict=True)
    assert len(next(batches).pixels) == 10
    with pytest.raises(ImageError, match=r"cross/005\.png: empty"):
        list(batches)


def test_streams_are_read_only_a_few_batches_ahead() -> None:
    taken = []

    def stream() -> Iterator[bytes]:
        for i in range(1000):
            taken.append(i)
            yield encoded(picture("cross", i, 8))

    batches = iter_decoded(stream(), SMALL, 4)
    next(batches)
    assert len(taken) <= 16
    batches.close()  # type: ignore[attr-defined]
    assert len(taken) <= 16


def test_an_empty_stream_gives_nothing_and_an_empty_choice_an_empty_array(
    class_folder: Path,
) -> None:
    assert list(iter_decoded([], SMALL)) == []
    assert decode_source(open_source(class_folder), SMALL, []).pixels.shape == (0, 12, 12, 3)


def test_an_error_of_the_stream_reaches_the_caller() -> None:
    def stream() -> Iterator[bytes]:
        yield encoded(picture("cross", 0, 8))
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(iter_decoded(stream(), SMALL, 1))


def test_progress_ends_at_the_total(class_folder: Path) -> None:
    done: list[int] = []
    decode_source(open_source(class_folder), SMALL, progress=done.append)
    assert min(done) > 0
    assert sum(done) == 36


def test_streams_and_sources_give_the_same_pixels(class_folder: Path) -> None:
    for seed in range(3):
        picture("circle", seed, 200).save(class_folder / "circle" / f"large{seed}.jpg")
    source = open_source(class_folder)
    streamed = np.concatenate([batch.pixels for batch in iter_decoded(source.uris, SMALL, 7)])
    assert np.array_equal(decode_source(source, SMALL).pixels, streamed)
    assert np.array_equal(SMALL.pixels(source.load(12, size_hint=SMALL.size_hint)), streamed[12])
    assert load_image(source.uris[12]).size == (200, 200)


def test_a_senseless_size_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected 1 or more, got 0"):
        list(iter_decoded([], SMALL, batch_size=0))


def test_files_elsewhere_are_read_many_at_a_time(object_store: Any) -> None:
    """Reading goes on only where as many threads as there are images in a batch are reading."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    together = threading.Barrier(8)

    class Slow(MemoryFileSystem):  # type: ignore[misc]
        protocol = "slow"

        def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
            together.wait(timeout=60)
            return super().cat_file("/" + path.partition("://")[2], *args, **options)

    fsspec.register_implementation("slow", Slow, clobber=True)
    uris = [f"slow://shop/{i}.png" for i in range(16)]
    for i in range(16):
        object_store.pipe(f"/shop/{i}.png", encoded(picture("cross", i)))
    batches = list(iter_decoded(uris, Preprocessing(8), 8))
    assert [len(batch.positions) for batch in batches] == [8, 8]
