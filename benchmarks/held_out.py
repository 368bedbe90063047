"""How well a model's held-out images find those that it was trained on; no test image is read.

    python benchmarks/held_out.py cifar10#train cifar48 cifar48-csq

Each model names in ``model.json`` the share and the seed of the images that validated it. They are
held out again and search the rest by codes alone: mAP@1000 and precision@1000, ties by id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from hashlens import Encoder, hamming_topk, open_source
from hashlens.evaluation.metrics import average_precision
from hashlens.models.checkpoint import read_config
from hashlens.training.config import TrainingConfig
from hashlens.training.data import decoded_inputs, split_rows

_BATCH = 64


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", help="what the models were trained on")
    parser.add_argument("models", nargs="+", type=Path, help="folders of models")
    asked = parser.parse_args()
    source = open_source(asked.source)
    for model in asked.models:
        config, _ = read_config(model)
        inputs = decoded_inputs(
            source, config.preprocessing, strict=True, console=Console(stderr=True)
        )
        trained = TrainingConfig(**config.training["configuration"])
        labels = source.labels[inputs.rows]
        split = split_rows(labels, inputs.twins, trained)
        database, queries = split.training, split.validation
        encoder = Encoder.load(model)
        batches = np.split(np.arange(len(labels)), range(_BATCH, len(labels), _BATCH))
        codes = np.concatenate(
            [encoder.encode_pixels(inputs.pixels.gather(rows)[0].numpy())[0] for rows in batches]
        )
        _, found = hamming_topk(codes[database], codes[queries], 1000)
        relevant = labels[database][found] == labels[queries][:, None]
        print(
            f"{model}: {len(queries)} held-out images search {len(database)}: "
            f"mAP@1000 {average_precision(relevant).mean():.4f}, "
            f"precision@1000 {relevant.mean():.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
