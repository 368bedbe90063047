"""Models to and from a Hugging Face hub. Only a model's own files travel, and none is a pickle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hashlens.data.hub import one_try
from hashlens.errors import HashlensError, MissingExtraError, ModelError
from hashlens.files import make_folder
from hashlens.models.description import CARD_NAME, CONFIG_NAME, ModelConfig, read_config, read_twin


def push_model(
    directory: Path, repo: str, *, endpoint: str | None = None, private: bool = True
) -> str:
    """Upload a model's description, weights and card.

    The token is that of ``hf auth login`` or of the variable ``HF_TOKEN``.
    """
    from hashlens.models.checkpoint import load_model

    load_model(directory)
    _, weights = read_config(directory)
    with _hub(f"{repo} could not be uploaded", endpoint) as hub:
        api = hub.HfApi(endpoint=endpoint)
        api.create_repo(repo, private=private, exist_ok=True)
        twin = read_twin(directory)
        names = [weights.name, *([twin.path.name] if twin else []), CARD_NAME, CONFIG_NAME]
        commit = api.create_commit(
            repo,
            operations=[
                hub.CommitOperationAdd(name, str(directory / name))
                for name in names
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

        def download(name: str) -> None:
            hub.hf_hub_download(repo, name, revision=revision, endpoint=endpoint, local_dir=aside)

        with _hub(f"{repo} could not be downloaded", endpoint) as hub:
            download(CONFIG_NAME)
            config, weights = read_config(aside)  # refuses any other name than that of safetensors
            download(weights.name)
            if twin := read_twin(aside):
                download(twin.path.name)
            if hub.HfApi(endpoint=endpoint).file_exists(repo, CARD_NAME, revision=revision):
                download(CARD_NAME)
        replace_model(directory, aside)
    return config


def cached_model(name: str) -> Path:
    """The folder of a model ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` in the hub's own cache.

    What has changed there is fetched; where the hub does not answer, what is here is taken.
    """
    repo, _, revision = name.partition("@")

    with _hub(f"hub:{name} could not be downloaded", None) as hub:

        def download(file: str) -> Path:
            return Path(hub.hf_hub_download(repo, file, revision=revision or None))

        folder = download(CONFIG_NAME).parent
        download(read_config(folder)[1].name)
        if twin := read_twin(folder):
            download(twin.path.name)
    return folder


@contextmanager
def _hub(failed: str, endpoint: str | None) -> Iterator[Any]:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("a model hub", "hub") from error
    try:
        with one_try(endpoint):
            yield huggingface_hub
    except HashlensError:
        raise
    except Exception as error:  # the hub's and the transport's errors share no base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{failed} ({type(error).__name__}: {reason}); check the name, the connection, "
            "--endpoint, and that `hf auth login` was done"
        ) from error
