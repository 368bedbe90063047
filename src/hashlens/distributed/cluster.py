"""A Ray cluster: joining one, or starting one on this machine."""

from __future__ import annotations

import os
from typing import Any

from hashlens.errors import HashlensError, MissingExtraError

LOCAL = "local"


def load_ray() -> Any:
    """The ``ray`` module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("encoding on a cluster", "ray") from error
    return ray


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
    ray = load_ray()
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if not address or address == LOCAL:
            os.environ.pop("RAY_ADDRESS", None)
            stay_on_loopback()
            ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises what it is, or Exception itself
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not address or address == LOCAL:
            raise HashlensError(
                f"Ray could not be started on this machine: {first_line}"
            ) from error
        raise HashlensError(
            f"no Ray cluster answers at {address} ({first_line}); start one with "
            "`ray start --head`, or use --ray local"
        ) from error
    return ray
