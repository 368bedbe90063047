"""Models to and from a Hugging Face hub. Only a model's own files travel, and none is a pickle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hashlens.data.hub import one_try
from hashlens.errors import HashlensError, ModelError, first_line, needs_extra
from hashlens.files import make_folder
from hashlens.models.description import (
    CARD_NAME,
    CONFIG_NAME,
    ModelConfig,
    described_files,
    read_config,
)


def push_model(
    directory: Path, repo: str, *, endpoint: str | None = None, private: bool = True
) -> str:
    """Upload a model's description, weights and card.

    The token is that of ``hf auth login`` or of the variable ``HF_TOKEN``.
    """
    from hashlens.models.checkpoint import load_model

    load_model(directory)
    with _hub(f"{repo} could not be uploaded", endpoint) as hub:
        api = hub.HfApi(endpoint=endpoint)
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo,
            operations=[
                hub.CommitOperationAdd(name, str(directory / name))
                for name in (*described_files(directory), CARD_NAME, CONFIG_NAME)
                if (directory / name).is_file()
            ],
            commit_message="Hashlens model",
        )
        return str(commit.commit_url)


def pull_model(
    repo: str, directory: Path, *, revision: str | None = None, endpoint: str | None = None
) -> ModelConfig:
    """Download a model; one that is there already stays until the new one is whole and checked."""
    from hashlens.models.checkpoint import replace_model

    make_folder(directory.parent)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=directory.parent) as folder:
        aside = Path(folder)
        place = {"revision": revision, "endpoint": endpoint, "local_dir": aside}
        with _hub(f"{repo} could not be downloaded", endpoint) as hub:
            _download(hub, repo, **place)
            if hub.HfApi(endpoint=endpoint).file_exists(repo, CARD_NAME, revision=revision):
                hub.hf_hub_download(repo, CARD_NAME, **place)
        replace_model(directory, aside)
    return read_config(directory)[0]


def cached_model(name: str) -> Path:
    """The folder of a model ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` in the hub's own cache.

    What has changed there is fetched; where the hub does not answer, what is here is taken.
    """
    repo, _, revision = name.partition("@")
    with _hub(f"hub:{name} could not be downloaded", None) as hub:
        return _download(hub, repo, revision=revision or None)


def _download(hub: Any, repo: str, **place: Any) -> Path:
    """Fetch a model's description, then the files that it names; return their folder."""
    folder = Path(hub.hf_hub_download(repo, CONFIG_NAME, **place)).parent
    for name in described_files(folder):  # refuses any other name than that of safetensors
        hub.hf_hub_download(repo, name, **place)
    return folder


@contextmanager
def _hub(failed: str, endpoint: str | None) -> Iterator[Any]:
    with needs_extra("a model hub", "hub"):
        import huggingface_hub
    try:
        with one_try(endpoint):
            yield huggingface_hub
    except HashlensError:
        raise
    except Exception as error:  # the hub's and the transport's errors share no base
        raise ModelError(
            f"{failed} ({type(error).__name__}: {first_line(error)}); check the name, the "
            "connection, --endpoint, and that `hf auth login` was done"
        ) from error
