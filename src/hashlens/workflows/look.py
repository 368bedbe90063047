"""``hashlens look``: from a folder of photographs to an index that can be searched and served."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashlens.data.labels import class_counts, without_labels
from hashlens.data.opening import find_folder, open_directory
from hashlens.data.source import ReadOptions, Source
from hashlens.errors import ModelError, SourceError, few_of
from hashlens.files import path_uri
from hashlens.index.hash_index import HashIndex
from hashlens.index.syncing import SyncedFolder, sync_folder
from hashlens.index.writing import update_records
from hashlens.machine import has_cuda
from hashlens.models.description import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.report.progress import ProgressBar
from hashlens.training.config import TrainingConfig
from hashlens.training.recipes import SMALL_SIDE, image_facts

ENOUGH = 5
"""A sub-folder of fewer images teaches nothing of a class."""


@dataclass(frozen=True)
class Prepared:
    """A model and an index of a folder, ready to be searched."""

    model: Path
    index: Path
    images: int
    synced: SyncedFolder


def prepare_folder(
    folder: str | Path,
    out: Path | None = None,
    *,
    use_labels: bool = True,
    exclude: Sequence[str] = (),
    weights: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Prepared:
    """Make a model of a folder's images where there is none yet, and bring its index up to date.

    Both are kept in ``out``, by default next to the folder. What was interrupted goes on.
    """
    spec = os.fspath(folder)
    root, all_classes = find_folder(spec)
    out = root.with_name(f"{root.name}.hashlens") if out is None else out
    model, index = out / "model", out / "index"
    options = ReadOptions(tuple(exclude))
    if not (model / CONFIG_NAME).is_file():
        values = {} if weights is None else {"weights": weights}
        _make_model(spec, model, options, values, use_labels, say, progress)
    encoder = Encoder.load(model)
    labelled = bool(encoder.classes)
    if labelled != (use_labels and (labelled or all_classes)):
        held, asked = ("with", "--no-labels") if labelled else ("without", "#*")
        raise ModelError(
            f"{out}: holds a model {held} classes, which {asked} would not use; remove it, or give "
            "another --out"
        )
    if not (index / "index.sqlite").is_file():
        HashIndex.create(index, encoder, model=model).close()
    with HashIndex.open(index, encoder) as opened:
        if opened.model != os.path.abspath(model):  # both were moved
            update_records(opened.store, [], model=path_uri(model))
        with ProgressBar("encoding", None, hidden=not progress) as bar:
            synced = sync_folder(opened, spec, options, use_labels=labelled, progress=bar.reach)
        images = len(opened)
        if labelled:
            added = {*opened.label_counts()} - {None, *encoder.classes}
            if added:
                say(
                    f"{len(added)} labels are no classes of the model yet, such as "
                    f"{min(map(str, added))}; remove {model} to train again with them"
                )
    return Prepared(model, index, images, synced)


def _make_model(
    spec: str,
    model: Path,
    options: ReadOptions,
    values: dict[str, Any],
    use_labels: bool,
    say: Callable[[str], None],
    progress: bool,
) -> None:
    root, asked = find_folder(spec)
    source = open_directory(path_uri(root), root, options, all_classes=asked or not use_labels)
    for line in source.notes:
        if use_labels or "class" not in line:
            say(f"note: {line}")
    reason = "as asked" if not use_labels else None if asked else why_no_classes(source)
    if reason is None:
        names = few_of(source.classes)
        say(f"learning {len(source.classes)} classes ({names}); --no-labels does not")
        # A folder should be seen in minutes; `hashlens train` takes longer and finds better.
        if not has_cuda() and image_facts(source).side > SMALL_SIDE:
            values["freeze_backbone"] = True
    else:
        bits = min(TrainingConfig().bits, len(source) // 2 // 8 * 8)
        if bits < 8:
            raise SourceError(
                f"{spec}: {len(source)} images without classes are too few, expected 16 or more; "
                "add images, or put five or more of each class into a sub-folder of its own"
            )
        say(f"codes of {bits} bits from the images alone, no classes: {reason}")
        source = without_labels(source)
        values |= {"bits": bits, "unsupervised": True}
    from hashlens.training.fit import train  # loads PyTorch: only where something is learned
    from hashlens.training.folder import RUN

    values["progress"], resume = progress, (model / RUN).is_dir()
    try:
        train(source, model, resume=resume, **values)
    except ModelError:  # what was interrupted had other images, or options
        if not resume:
            raise
        train(source, model, overwrite=True, **values)


def why_no_classes(source: Source) -> str | None:
    """Why a folder's sub-folders are not taken for classes; None where they are."""
    if not source.classes:
        return "no sub-folders that could be classes"
    if len(source.classes) == 1:
        return f"only one sub-folder, {source.classes[0]}"
    counts = class_counts(source)
    enough = counts[counts >= ENOUGH]
    if len(enough) < 2 or 2 * enough.sum() < len(source):
        return f"of {len(source)} images only {enough.sum()} are in sub-folders of {ENOUGH} or more"
    return None
