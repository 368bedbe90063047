"""A Ray cluster: joining one, or starting one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hashlens.errors import HashlensError, first_line, needs_extra

LOCAL = "local"


def stay_on_loopback() -> None:
    """Have the cluster that is started next listen on 127.0.0.1 alone.

    Ray replaces 127.0.0.1 by an address that other machines reach, unless it is told that there
    are none, as it is by default on Windows and macOS.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def connect(address: str | None = None) -> Any:
    """The ``ray`` module, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needs_extra("encoding on a cluster", "ray"):
        import ray
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        os.environ.pop("RAY_ADDRESS", None)
        stay_on_loopback()
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        ray.init(address, **options)
    except Exception as error:  # Ray raises what it is, or Exception itself
        said = first_line(error)
        if address == LOCAL:
            raise HashlensError(f"Ray could not be started on this machine: {said}") from error
        raise HashlensError(
            f"no Ray cluster answers at {address} ({said}); start one with "
            "`ray start --head`, or use --ray local"
        ) from error
    return ray


@contextmanager
def plain_errors(ray: Any) -> Iterator[None]:
    """Say in one line what failed on the cluster; our own errors as they are."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, HashlensError):
            raise cause from None
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise HashlensError(
            f"a task of the cluster failed: {said}; what is done is kept: run the command again"
        ) from error
