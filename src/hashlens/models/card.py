"""The model card: what a model was made from, for whoever meets the directory later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hashlens.models.config import ModelConfig

CARD_NAME = "README.md"
_MOST_CLASSES = 50


def model_card(config: ModelConfig) -> str:
    """Markdown text of a model's card.

    Parameters
    ----------
    config : ModelConfig
        Each mapping in ``config.training`` becomes a section with a table, each plain value a
        row of the section "Training"; what is not recorded is not mentioned.
    """
    plain = {key: value for key, value in config.training.items() if not _is_section(value)}
    sections = {key: value for key, value in config.training.items() if _is_section(value)}
    parts = [
        "---\nlibrary_name: hashlens\ntags: [image-retrieval, learning-to-hash]\n---",
        f"# Hashlens model, {config.bits} bits",
        "Turns an image into a binary code and a feature vector, to search for similar images "
        "(Lin et al., CVPR Workshops 2015). Use it with\n\n"
        '```python\nfrom hashlens import Encoder\n\nencoder = Encoder.load("THIS_DIRECTORY")\n'
        "codes, features = encoder.encode(images)\n```",
        "## Network\n\n" + _table(_network(config)),
        "## Starting weights\n\n"
        + _table({"origin": config.start_origin, "licence": config.start_licence}),
        f"## Classes ({len(config.classes)})\n\n{_classes(config)}",
    ]
    if plain:
        parts.append("## Training\n\n" + _table(plain))
    parts.extend(f"## {_title(key)}\n\n{_table(value)}" for key, value in sections.items())
    parts.append(
        "## Limits\n\nCodes and features are comparable only between images encoded by this "
        "fingerprint. Figures above were seen on a validation split of the training data; images "
        "of another kind can do worse."
    )
    return "\n\n".join(parts) + "\n"


def _network(config: ModelConfig) -> dict[str, Any]:
    image = config.preprocessing
    return {
        "backbone": config.backbone,
        "bits": config.bits,
        "features": config.feature_dim,
        "input": f"{image.size} x {image.size} px, {image.channels} channel(s), {image.resize}",
        "labels": "several an image" if config.multi_label else "one an image",
        "proposed radius": "not measured" if config.radius is None else config.radius,
        "fingerprint": config.fingerprint,
    }


def _classes(config: ModelConfig) -> str:
    if not config.classes:
        return "None: the codes were learned without labels."
    shown = ", ".join(_escape(name) for name in config.classes[:_MOST_CLASSES])
    left = len(config.classes) - _MOST_CLASSES
    return shown + (f" and {left} more, listed in model.json" if left > 0 else "")


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping)


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _table(values: Mapping[str, Any]) -> str:
    rows = [
        f"| {_escape(key.replace('_', ' '))} | {_escape(_text(v))} |" for key, v in values.items()
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    return str(value)


def _escape(value: object) -> str:
    """Text that stays in its table cell and is not read as HTML or Markdown."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "`", "<", "[", "*"):
        text = text.replace(mark, f"\\{mark}")
    return text
