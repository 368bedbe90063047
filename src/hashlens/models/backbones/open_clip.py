"""Any CLIP of open_clip, written open_clip:NAME: its embedding, so that texts find images too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hashlens.data.hub import one_try
from hashlens.errors import ModelError, few_of, first_line, needs_extra
from hashlens.models.backbones import (
    Backbone,
    StartWeights,
    register_backbone,
    squashed,
    start_from_file,
)
from hashlens.models.backbones.vectors import UnitLength
from hashlens.models.checkpoint import TorchRunner, load_model
from hashlens.models.encoder import EncodedPixels

_LOCAL, _WEIGHTS = "local-dir:", "open_clip_model.safetensors"
# Where images alone are wanted: the smallest text tower that open_clip builds.
_NO_TEXTS = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 1, "context_length": 1}


@register_backbone
def open_clip(
    *, model: str, size: int | None = None, weights: Path | None, pretrained: bool
) -> Backbone:
    """CLIP's image tower and projection, at unit length, with its own preprocessing.

    ``model`` is a name of open_clip, with the tag of published weights behind a slash, or
    ``local-dir:`` and a folder as open_clip keeps them.
    """
    if model.startswith(_LOCAL):
        model = _LOCAL + str(Path(model.removeprefix(_LOCAL)).expanduser().absolute())
    clip, known, start = _clip(model, size, weights, whole=pretrained or weights is not None)
    width = import_module("open_clip").get_model_config(known)["embed_dim"]
    seen = clip.visual.preprocess_cfg
    resize = "crop" if seen["resize_mode"] == "shortest" else "squash"
    side = int(np.min(seen["size"]))  # of a tower that is built for squares
    look = squashed(
        side, 3, seen["mean"], seen["std"], resize=resize, interpolation=seen["interpolation"]
    )
    return Backbone(f"open_clip:{model}", _image_tower(clip), width, look, start)


def load_texts(directory: Path) -> Callable[[Sequence[str]], EncodedPixels]:
    """Runs a model's own layers on texts, embedded as the checkpoint of its backbone does."""
    net, config = load_model(directory)
    model = config.backbone.partition(":")[2]
    clip, known, _ = _clip(model, config.preprocessing.shape[-1], None, whole=True)
    library = import_module("open_clip")
    texts_taken = library.get_model_config(known)["text_cfg"]
    if texts_taken.get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise ModelError(f"{config.backbone}: its tokenizer brings code, which is not run")
    tokens = library.get_tokenizer(known)
    own = net.backbone.state_dict()
    for name, value in _image_tower(clip).state_dict().items():
        if not torch.allclose(value.float(), own[name].float(), 1e-3, 1e-5):
            raise ModelError(
                f"{directory}: its image tower is not that of {config.backbone} any more, so texts "
                "do not fit its codes; train with --freeze-backbone or --unsupervised"
            )
    clip.eval().visual = net.backbone = nn.Identity()
    runner, one_thread = TorchRunner(net), threading.Lock()
    words = dict(getattr(tokens, "cache", {}))

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> EncodedPixels:
        with one_thread:  # a tokeniser of the hub fails in two
            tokens.cache = dict(words)  # open_clip's keeps every word that it has ever met
            read = tokens(list(texts))
        return runner.run(clip.encode_text(read, normalize=True).numpy())

    return run


def _image_tower(clip: Any) -> nn.Module:
    return nn.Sequential(clip.visual, UnitLength())


def _clip(
    model: str, size: int | None, weights: Path | None, *, whole: bool
) -> tuple[Any, str, StartWeights]:
    """A CLIP with its checkpoint's weights, if ``whole``, else random and without texts.

    Its name for open_clip, which leaves the tag out, and where its weights are from.
    """
    with needs_extra(f"the backbone open_clip:{model}", "clip"):
        library: Any = import_module("open_clip")
    name, _, tag = (model, "", "") if model.startswith(_LOCAL) else model.partition("/")
    published, start = library.get_pretrained_cfg(name, tag), StartWeights()
    unnamed = not published and (tag or (whole and not weights))
    if not name.startswith(_LOCAL) and (unnamed or name not in library.list_models()):
        known = library.list_pretrained_tags_by_model(name) or library.list_models()
        raise ModelError(f"open_clip:{model}: expected NAME/TAG, known are {few_of(known)}")
    # or else open_clip sets up Python's logging, to say of images alone that all is random
    quiet, before = logging.NullHandler(), logging.root.disabled
    logging.root.addHandler(quiet)
    logging.root.disabled = True
    try:
        clip = library.create_model(
            name,
            load_weights=False,
            pretrained_text=False,
            device=torch.get_default_device(),
            force_image_size=size,
            force_quick_gelu=published.get("quick_gelu", False),
            force_preprocess_cfg=published,
            **({} if whole else {"text_cfg": _NO_TEXTS}),
        )
        if isinstance(clip, library.CoCa):
            raise ValueError("a CoCa gives several vectors an image; use another model")
        if whole:
            if weights is None and published:
                repo, _, file = published["hf_hub"].rpartition("/")
                file = Path(file or _WEIGHTS).with_suffix(".safetensors").name
                with one_try():
                    weights = Path(import_module("huggingface_hub").hf_hub_download(repo, file))
            weights = weights or Path(name.removeprefix(_LOCAL)) / _WEIGHTS
            if weights.suffix != ".safetensors":
                raise ValueError(f"{weights} is no .safetensors file, and a pickle is not read")
            library.load_checkpoint(clip, str(weights))
            start = StartWeights(f"open_clip {model}", start_from_file(weights).licence)
    except Exception as error:  # open_clip and the hub raise errors of every kind
        raise ModelError(
            f"open_clip:{model} could not be built ({first_line(error)}); give a name that "
            f"open_clip lists, or a folder with open_clip_config.json and {_WEIGHTS}, both "
            "downloaded from its page, as open_clip:local-dir:FOLDER"
        ) from error
    finally:
        logging.root.removeHandler(quiet)
        logging.root.disabled = before
    return clip, name, start
