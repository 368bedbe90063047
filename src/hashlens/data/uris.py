"""Names of images: what a URI means, and where its bytes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import SourceError
from hashlens.files import parse_row, uri_path

RawImage: TypeAlias = bytes | Path | NDArray[np.uint8]
"""What a store holds of one image: encoded bytes, a file, or pixels."""


def resolve(image: Any) -> RawImage:
    """Where an image's bytes are."""
    if not isinstance(image, str):
        return Path(image)
    row = parse_row(image)
    if row is None or row.is_in_file:
        try:
            path = uri_path(image if row is None else row.table)
        except ValueError as error:
            raise SourceError(f"no name of a file ({error})") from error
        if row is None:
            return path
        from hashlens.data.tables import open_parquet

        return open_parquet(str(path)).read(row.row)
    if row.table == "digits":
        from hashlens.data.digits import DigitImages

        return DigitImages().read(row.row)
    from hashlens.data.hub import HubImages

    name, _, split = row.table.removeprefix("hub:").rpartition("#")
    return HubImages(name, split).read(row.row)
