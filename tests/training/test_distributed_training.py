"""Two processes train what one does, and validate each image once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hashlens import open_source
from hashlens.models.checkpoint import load_model
from hashlens.training.fit import fit
from hashlens.training.recipes import configure

# No layer looks over the batch here or draws at random: halves of it would differ.
_RECIPE = """
recipe = "small"
backbone = "timm:test_resnet"
freeze_backbone = true
size = 16
epochs = 2
batch_size = 50
validation = 0.205
precision = "fp32"
feature_layer = 0
latent_normalisation = false
"""


def test_two_processes_train_what_one_does(tmp_path: Path, frozen: dict[str, Any]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(_RECIPE + f"weights = {json.dumps(frozen['weights'])}\n")
    hashlens = str(Path(sys.executable).with_name("hashlens"))
    options = f"--recipe {recipe} --out {tmp_path / 'two'} --bits 16 --devices 2 --json"
    answer = subprocess.run(
        [hashlens, "train", "digits#train", *options.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()  # one JSON object, from the first process alone
    two = json.loads(line)
    source = open_source("digits#train")
    config, _ = configure(str(recipe), {"bits": 16}, source)
    one = fit(source, config, tmp_path / "one", progress=False)
    best = one.history[one.best_epoch - 1]
    assert two["validation"]["images"] == best["images"] == one.validation_images
    assert one.validation_images % 2 == 1  # the two shares differ in size
    assert two["best_epoch"] == one.best_epoch
    for name in ("train_loss", "loss", "map", "accuracy"):
        assert two["validation"][name] == pytest.approx(best[name], rel=1e-3)
    nets = [load_model(tmp_path / name)[0] for name in ("one", "two")]
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], value, rtol=1e-3, atol=1e-4)
