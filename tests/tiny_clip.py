"""A CLIP of a few thousand weights that knows three colours, saved as open_clip saves one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from hashlens import Encoder, HashIndex, train

COLOURS = {"red": (220, 60, 60), "green": (60, 200, 70), "blue": (60, 70, 220)}
SIDE, WIDTH = 32, 32
STRUCTURE = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "width": 32, "heads": 2, "layers": 2},
}
SEEN = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2], "resize_mode": "squash"}


def picture(colour: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of mostly one colour."""
    noise = rng.normal(0, 50, (8, 8, 3)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
    return np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)


def save_pictures(folder: Path, each: int = 20) -> Path:
    """A folder of pictures for each colour."""
    rng = np.random.default_rng(1)
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(picture(colour, rng)).save(folder / colour / f"{i:02}.png")
    return folder


def save_home(folder: Path) -> Path:
    """A CLIP, a model over it that learned no labels, and an index of pictures of three colours."""
    clip, photos = save_clip(folder / "clip"), save_pictures(folder / "photos")
    name = f"open_clip:local-dir:{clip}"
    train(photos, folder / "m", 16, unsupervised=True, backbone=name, progress=False)
    paths = sorted(photos.rglob("*.png"))
    with HashIndex.create(folder / "i", Encoder.load(folder / "m"), model=folder / "m") as index:
        index.add(paths, [path.parent.name for path in paths])
    return folder


def save_clip(folder: Path, steps: int = 60) -> Path:
    """A random CLIP that has learned for a second which text goes with which pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is slower on several
    torch.manual_seed(0)
    clip = open_clip.CLIP(**STRUCTURE)
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    texts = open_clip.get_tokenizer(context_length=8)([f"a {name} picture" for name in names])
    clip.token_embedding.requires_grad_(False)  # it is most of the weights
    steering = torch.optim.Adam(clip.parameters(), 1e-3)
    for _ in range(steps):
        labels = rng.integers(0, len(names), 32)
        pixels = np.stack([picture(names[label], rng) for label in labels]) / 255
        images = torch.tensor((pixels - SEEN["mean"]) / SEEN["std"], dtype=torch.float32)
        scores, _ = clip.get_logits(images.permute(0, 3, 1, 2), texts)
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(labels))
        steering.zero_grad()
        loss.backward()
        steering.step()
    torch.set_num_threads(threads)
    folder.mkdir()
    state = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    described = {"model_cfg": STRUCTURE, "preprocess_cfg": SEEN}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder
