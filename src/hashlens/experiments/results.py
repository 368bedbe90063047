"""Results of single methods, kept as JSON so that nothing is run twice."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("hashlens", "numpy", "scipy", "torch", "lightning")


class ResultStore:
    """A folder with one JSON file a result, named by method and configuration.

    Parameters
    ----------
    folder : Path
        Made when the first result comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, configuration: dict[str, Any]) -> dict[str, Any] | None:
        """What was kept for exactly this configuration, or None.

        Parameters
        ----------
        name : str
            Of the method.
        configuration : dict
            All that decides the result, as JSON values.
        """
        try:
            kept = json.loads(self._path(name, configuration).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or cut by a crash: run it
            return None
        return (
            kept if isinstance(kept, dict) and kept.get("configuration") == configuration else None
        )

    def put(
        self, name: str, configuration: dict[str, Any], scores: dict[str, Any]
    ) -> dict[str, Any]:
        """Keep a result with its configuration, versions and hardware; returns what is kept.

        Parameters
        ----------
        name : str
            Of the method.
        configuration, scores : dict
            As JSON values.
        """
        kept = {
            "method": name,
            "configuration": configuration,
            "scores": scores,
            "versions": versions(),
            "hardware": hardware(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self._path(name, configuration)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
        return kept

    def _path(self, name: str, configuration: dict[str, Any]) -> Path:
        text = json.dumps(configuration, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return self._folder / f"{file_name(name)}-{digest}.json"


def file_name(method: str) -> str:
    """A method's name, fit for a file: ``CNNH+`` becomes ``cnnh-plus``."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower().replace("+", "-plus")).strip("-")


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Cores that this process may use, the processor, and the first GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0]
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{cores} cores of {name}, {_gpu() or 'no GPU'}"


def _gpu() -> str | None:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
