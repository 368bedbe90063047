"""Data sets and tables in memory as sources, made with the real libraries."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from hashlens import SourceError, open_source
from hashlens.data.decoding import decode_source, iter_decoded
from hashlens.data.opening import load_image
from hashlens.data.preprocessing import Preprocessing
from hashlens.data.source import Source

LABELS = ["cat", "dog", "cat", "bird", "dog"]
CLASSES = ("bird", "cat", "dog")
NUMBERS = [1, 2, 1, 0, 2]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)) for _ in LABELS]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def assert_holds_the_pictures(source: Source) -> None:
    """All ways to read an image give the same pixels, and labels are where they were."""
    assert len(source) == len(LABELS)
    assert source.classes == CLASSES
    assert source.labels.tolist() == NUMBERS
    for i, picture in enumerate(pictures()):
        for image in (source.load(i), load_image(source.uris[i])):
            assert np.array_equal(np.asarray(image), np.asarray(picture))
    streamed = np.concatenate([b.pixels for b in iter_decoded(source.uris, Preprocessing(8))])
    assert np.array_equal(decode_source(source, Preprocessing(8)).pixels, streamed)
    assert len(set(source.uris)) == len(LABELS)


def test_a_hugging_face_dataset() -> None:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
    )
    columns = {"image": pictures(), "label": NUMBERS}
    data = datasets.Dataset.from_dict(columns, features=features)
    assert_holds_the_pictures(open_source(data))
    assert_holds_the_pictures(open_source(data.select([4, 3, 2, 1, 0]).select([4, 3, 2, 1, 0])))
    assert open_source(data).uris == open_source(data).uris
    shuffled = open_source(data.select([3, 1]))
    assert shuffled.labels.tolist() == [0, 2]
    with pytest.raises(SourceError, match=r"several splits \(train, test\): give one"):
        open_source(datasets.DatasetDict(train=data, test=data))
    with pytest.raises(SourceError, match="expected a column 'image', got text"):
        open_source(datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(SourceError, match=r"'image' must be of the type datasets\.Image"):
        open_source(datasets.Dataset.from_dict({"image": ["a"]}))


@pytest.mark.parametrize("as_stored", [encoded, np.asarray, lambda picture: picture])
def test_a_data_frame(as_stored: Any) -> None:
    images = [as_stored(picture) for picture in pictures()]
    frame = pd.DataFrame({"image": images, "label": LABELS}, index=[7, 7, 3, 1, 0])
    assert_holds_the_pictures(open_source(frame))
    frame["label"] = frame["label"].astype("category")
    assert_holds_the_pictures(open_source(frame))


def test_a_data_frame_of_paths_names_its_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(len(LABELS))]
    for path, picture in zip(paths, pictures(), strict=True):
        picture.save(path)
    source = open_source(pd.DataFrame({"img": paths, "labels": LABELS}))
    assert_holds_the_pictures(source)
    assert source.uris == [str(path) for path in paths]


def test_missing_labels_of_a_data_frame() -> None:
    images = [encoded(picture) for picture in pictures()]
    numbers = open_source(pd.DataFrame({"image": images, "label": [1, None, 3, 3, 1]}))
    assert (numbers.classes, numbers.labels.tolist()) == (("1", "3"), [0, -1, 1, 1, 0])
    bare = open_source(pd.DataFrame({"image": images}))
    assert (bare.labels == -1).all()
    assert "has no column 'label'" in bare.notes[0]
    with pytest.raises(SourceError, match="expected whole numbers, words"):
        open_source(pd.DataFrame({"image": images, "label": [0.5, 1, 2, 3, 4]}))
    with pytest.raises(SourceError, match="expected a column 'image', got picture"):
        open_source(pd.DataFrame({"picture": images}))


def test_an_arrow_table() -> None:
    images = [encoded(picture) for picture in pictures()]
    assert_holds_the_pictures(open_source(pa.table({"image": images, "label": LABELS})))
    structs = [{"bytes": image, "path": None} for image in images]
    assert_holds_the_pictures(open_source(pa.table({"image": structs, "label": LABELS})))


class Pairs(Dataset[Any]):
    """A torch Dataset that keeps no list of its labels."""

    classes = CLASSES

    def __init__(self, to_tensor: bool) -> None:
        self.images: list[Any] = [ToTensor()(p) if to_tensor else p for p in pictures()]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.images[i], torch.tensor(NUMBERS[i])


@pytest.mark.parametrize("to_tensor", [False, True])
def test_a_torch_dataset(to_tensor: bool) -> None:
    assert_holds_the_pictures(open_source(Pairs(to_tensor)))


def test_a_torch_dataset_with_targets_is_not_decoded_for_its_labels(tmp_path: Path) -> None:
    for i, (label, picture) in enumerate(zip(LABELS, pictures(), strict=True)):
        (tmp_path / label).mkdir(exist_ok=True)
        picture.save(tmp_path / label / f"{i}.png")
    (tmp_path / "cat" / "broken.png").write_bytes(b"broken")
    data = ImageFolder(str(tmp_path), transform=ToTensor())
    source = open_source(data)
    assert source.classes == CLASSES
    assert source.labels.tolist() == data.targets
    part = open_source(Subset(data, [5, 0]))
    assert part.labels.tolist() == [2, 0]
    assert np.array_equal(np.asarray(part.load(1)), np.asarray(pictures()[3]))


def test_pairs_that_cannot_be_used_are_named() -> None:
    grey = np.zeros((4, 4), np.uint8)
    for pairs, message in [
        ([], "no images"),
        ([grey], "expected pairs"),
        ([(grey, 1), (grey, "a")], "expected whole numbers, words, or lists of either, got 1"),
        (TensorDataset(torch.zeros(3, 1, 4, 4)), "expected pairs"),
        (5, "cannot be read row by row"),
    ]:
        with pytest.raises(SourceError, match=message):
            open_source(pairs)
    normalised = TensorDataset(torch.full((2, 3, 4, 4), -1.0), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(SourceError, match="leave Normalize out"):
        open_source(normalised).store.read(0)


def test_rows_in_memory_end_with_their_source() -> None:
    source = open_source([(np.zeros((4, 4), np.uint8), "a")])
    again = pickle.loads(pickle.dumps(source))
    assert load_image(again.uris[0]).size == (4, 4)
    uri = source.uris[0]
    assert load_image(uri).size == (4, 4)
    del source
    with pytest.raises(SourceError, match="does not hold"):
        load_image(uri)


def test_a_source_stays_itself() -> None:
    source = open_source("digits#test")
    assert open_source(source) is source
