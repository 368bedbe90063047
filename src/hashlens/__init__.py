"""Hashlens: image search with binary codes learned from class labels.

Names are resolved on first use, so that ``import hashlens`` loads neither torch nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hashlens.codes.packing import pack_bits, unpack_bits
    from hashlens.codes.search import hamming_radius, hamming_topk
    from hashlens.data.opening import open_source
    from hashlens.errors import (
        HashlensError,
        ImageError,
        IndexStoreError,
        InvalidInputError,
        MissingExtraError,
        ModelError,
        SourceError,
    )
    from hashlens.hasher import Hasher
    from hashlens.index.hash_index import HashIndex
    from hashlens.models.encoder import Encoder
    from hashlens.training.fit import train
    from hashlens.types import Hit, Record, Searcher, SearchOptions, SearchResult, Text
    from hashlens.workflows.score import evaluate

_HOMES = {
    "Encoder": "hashlens.models.encoder",
    "HashIndex": "hashlens.index.hash_index",
    "Hasher": "hashlens.hasher",
    "HashlensError": "hashlens.errors",
    "Hit": "hashlens.types",
    "ImageError": "hashlens.errors",
    "IndexStoreError": "hashlens.errors",
    "InvalidInputError": "hashlens.errors",
    "MissingExtraError": "hashlens.errors",
    "ModelError": "hashlens.errors",
    "Record": "hashlens.types",
    "SearchOptions": "hashlens.types",
    "SearchResult": "hashlens.types",
    "Searcher": "hashlens.types",
    "SourceError": "hashlens.errors",
    "Text": "hashlens.types",
    "evaluate": "hashlens.workflows.score",
    "hamming_radius": "hashlens.codes.search",
    "hamming_topk": "hashlens.codes.search",
    "open_source": "hashlens.data.opening",
    "pack_bits": "hashlens.codes.packing",
    "train": "hashlens.training.fit",
    "unpack_bits": "hashlens.codes.packing",
}

__all__ = [
    "Encoder",
    "HashIndex",
    "Hasher",
    "HashlensError",
    "Hit",
    "ImageError",
    "IndexStoreError",
    "InvalidInputError",
    "MissingExtraError",
    "ModelError",
    "Record",
    "SearchOptions",
    "SearchResult",
    "Searcher",
    "SourceError",
    "Text",
    "__version__",
    "evaluate",
    "hamming_radius",
    "hamming_topk",
    "open_source",
    "pack_bits",
    "train",
    "unpack_bits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hashlens' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
