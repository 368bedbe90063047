"""Files of equal content, by which labels of the same picture are compared."""

from __future__ import annotations

import shutil
from pathlib import Path

from hashlens.data.opening import open_source
from hashlens.workflows.labels import same_files
from image_builders import write_class_folder


def test_groups_of_equal_files(tmp_path: Path) -> None:
    folder = write_class_folder(tmp_path / "photos", 4)
    shutil.copy(folder / "stripe" / "002.png", folder / "circle" / "copy.png")
    shutil.copy(folder / "stripe" / "002.png", folder / "cross" / "copy.png")
    (folder / "cross" / "gone.png").symlink_to("nowhere")
    source = open_source(folder)
    (group,) = same_files(source)
    found = {str(Path(source.uris[position]).relative_to(folder)) for position in group}
    assert found == {"circle/copy.png", "cross/copy.png", "stripe/002.png"}


def test_digits_are_all_different() -> None:
    assert same_files(open_source("digits#test")) == []
