"""Data sets of a hub as sources, from a folder, so that nothing is downloaded."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_tables import assert_same_pictures, write_table

from hashlens import ImageError, SourceError, open_source
from hashlens.data.opening import load_image
from image_builders import CLASSES, write_class_folder


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that ``datasets.load_dataset`` opens by its folder, with two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("train", "test"):
        write_class_folder(tmp_path / "shapes" / part, 3)
    return tmp_path / "shapes"


def test_a_hub_data_set_of_image_files(hub_folder: Path) -> None:
    source = open_source(f"hub:{hub_folder}#train")
    assert source.classes == CLASSES
    assert sorted(source.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    assert source.uris[4] == f"hub:{hub_folder}#train#4"
    assert np.array_equal(np.asarray(source.load(4)), np.asarray(load_image(source.uris[4])))
    assert len(pickle.loads(pickle.dumps(source))) == 9
    with pytest.raises(SourceError, match=r"several splits; name one: .*#train or .*#test"):
        open_source(f"hub:{hub_folder}")
    with pytest.raises(SourceError, match="could not be loaded"):
        open_source(f"hub:{hub_folder}#dev")
    with pytest.raises(ImageError, match="expected a row from 0 to 8, got 9"):
        load_image(f"hub:{hub_folder}#train#9")


def test_a_hub_data_set_of_tables(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    table = pq.read_table(write_table(tmp_path / "x.parquet", [0, 1, 2] * 3, list(CLASSES)))
    info = table.schema.metadata[b"huggingface"].replace(b'"image"', b'"img"')
    table = table.rename_columns(["img", "label"]).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, hub_folder / "train.parquet")
    source = open_source(f"hub:{hub_folder}")
    assert source.classes == CLASSES
    assert source.labels.tolist() == [0, 1, 2] * 3
    assert_same_pictures(source)


def test_a_hub_data_set_without_images_is_refused(tmp_path: Path, hub_folder: Path) -> None:
    shutil.rmtree(hub_folder)
    hub_folder.mkdir()
    (hub_folder / "train.csv").write_text("text,label\nhello,1\n")
    with pytest.raises(SourceError, match="expected a column 'image', got text, label"):
        open_source(f"hub:{hub_folder}")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="hub:some-one/some-images: could not be loaded") as error:
        open_source("some-one/some-images")
    assert str(error.value).startswith("some-one/some-images: no such file or folder; ")
    assert "\n" not in str(error.value)
