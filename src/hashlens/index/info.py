"""What an index is: its size, its kind, and where its codes come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hashlens.index.schema import FORMAT_VERSION
from hashlens.index.snapshot import Snapshot


@dataclass(frozen=True)
class IndexInfo:
    """What an index is.

    Attributes
    ----------
    path : str
        The folder.
    format_version : int
        Of the folder.
    images, removed : int
        Living images; rows that ``compact`` would drop.
    bits, feature_dim : int
        Length of a code; width of a feature vector (0: codes only).
    features : str
        "float16" or "float32".
    fingerprint, model : str
        Of the encoder, and where its model lies; empty where unknown.
    commit : int
        Number of the last commit.
    bytes_on_disk : int
        Size of all files.
    """

    path: str
    format_version: int
    images: int
    removed: int
    bits: int
    feature_dim: int
    features: str
    fingerprint: str
    model: str
    commit: int
    bytes_on_disk: int


def describe(folder: Path, snapshot: Snapshot) -> IndexInfo:
    """What the index in ``folder`` is at one of its commits."""
    meta = snapshot.meta
    return IndexInfo(
        path=os.fspath(folder),
        format_version=FORMAT_VERSION,
        images=len(snapshot),
        removed=meta.count - len(snapshot),
        bits=meta.bits,
        feature_dim=meta.feature_dim,
        features=meta.features,
        fingerprint=meta.fingerprint,
        model=meta.model,
        commit=meta.commit,
        bytes_on_disk=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()),
    )
