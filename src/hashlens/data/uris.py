"""Names of images: what a URI means, and where its bytes are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import SourceError
from hashlens.files import uri_path

RawImage: TypeAlias = bytes | Path | NDArray[np.uint8]
"""What a store holds of one image: encoded bytes, a file, or pixels."""

_PARQUET = re.compile(r"(?P<path>.+\.parquet)#(?P<row>\d+)", re.IGNORECASE | re.DOTALL)
_DIGITS = re.compile(r"digits#(?P<row>\d+)")
_HUB = re.compile(r"hub:(?P<name>.+)#(?P<split>[^#]+)#(?P<row>\d+)", re.DOTALL)


def resolve(image: Any) -> RawImage:
    """Where an image's bytes are."""
    if not isinstance(image, str):
        return Path(image)
    if match := _PARQUET.fullmatch(image):
        from hashlens.data.tables import open_parquet

        return open_parquet(os.path.expanduser(match["path"])).read(int(match["row"]))
    elif match := _DIGITS.fullmatch(image):
        from hashlens.data.digits import DigitImages

        return DigitImages().read(int(match["row"]))
    elif match := _HUB.fullmatch(image):
        from hashlens.data.hub import HubImages

        return HubImages(match["name"], match["split"]).read(int(match["row"]))
    try:
        return uri_path(image)
    except ValueError as error:
        raise SourceError(f"no name of a file ({error})") from error
