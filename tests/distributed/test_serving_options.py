"""Options of the front ends on Ray Serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from hashlens import InvalidInputError
from hashlens.distributed.serving import parse_options


def test_options_are_read() -> None:
    given = {"index": "/x", "front_ends": "3", "require_all": "True", "host_names": "A.org,b.org"}
    options = parse_options(given)
    assert (options.index, options.front_ends, options.replicas) == (Path("/x"), 3, 1)
    assert options.require_all is True
    assert options.host_names == ("a.org", "b.org")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "index=FOLDER"),
        ({"index": "x", "frontends": "2"}, "got frontends"),
        ({"index": "x", "front_ends": "two"}, "front_ends: expected a number, got 'two'"),
        ({"index": "x", "front_ends": "0"}, "front_ends: expected 1 or more"),
        ({"index": "x", "require_all": "maybe"}, "expected true or false"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_options(given)
