"""What H costs and what it gives: a network with H next to one without, on the same images.

``python benchmarks/paper_claims.py MODEL [WITHOUT] DATABASE QUERIES``: MODEL was trained with
the objective latent, WITHOUT with softmax and otherwise alike. Prints classification errors;
codes of the trained H, of H as it was drawn and of LSH, all of MODEL's F7; exhaustive search over
F7, over F7 compressed by PCA (neural codes), and over the pooled activations of each block of
layers. Features of every row but the neural codes are centred and of unit length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hashlens import Encoder, open_source
from hashlens.baselines import create_method
from hashlens.codes.packing import pack_bits
from hashlens.evaluation.scoring import score_searcher, top_class_error
from hashlens.index.ranking import ArraySearcher
from hashlens.models.checkpoint import TorchRunner, load_model
from hashlens.models.encoder import encode_source
from hashlens.paper.comparison import NEURAL_DIMENSIONS, neural_codes
from hashlens.types import Codes, EncodedImages, Features, Mode

SEEDS = 3


def main(models: list[str], database_name: str, queries_name: str) -> None:
    """Encode both sets with each network, and print one row per question."""
    sources = open_source(database_name), open_source(queries_name)
    for name in models:
        net, config = load_model(Path(name))
        net.feature_mean = net.feature_scale = None  # F7 as it is; scaled below
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder, pooled = Encoder(config, TorchRunner(net, device)), hooked(net)
        parts, layers = [], []
        for source in sources:
            parts.append(encode_source(encoder, source))
            layers.append([np.concatenate(values) for values in pooled])
            for values in pooled:
                values.clear()
        database, queries = parts
        error = top_class_error(queries.scores, queries.labels)
        print(f"{name}, {encoder.bits} bits: error {error:.4f}")
        f7 = centred(database.features, queries.features)
        database, queries = replace(database, features=f7[0]), replace(queries, features=f7[1])
        show("F7, es", database, queries, "es")
        if name == models[0]:
            show("trained H, bcs", database, queries, "bcs")
            random_codes(database, queries, encoder.bits)
        both = np.concatenate(f7)
        dimensions = min(NEURAL_DIMENSIONS, both.shape[1])
        small = neural_codes(both, np.arange(len(f7[0])), dimensions)
        show(
            f"neural codes, {dimensions}-d, es",
            replace(database, features=small[: len(f7[0])]),
            replace(queries, features=small[len(f7[0]) :]),
            "es",
        )
        for number, (stored, asked) in enumerate(zip(*layers, strict=True), 1):
            found = centred(stored, asked)
            show(
                f"block {number}, pooled, {stored.shape[1]}-d, es",
                replace(database, features=found[0]),
                replace(queries, features=found[1]),
                "es",
            )


def hooked(net: nn.Module) -> list[list[NDArray[np.float32]]]:
    """Lists that fill with each block's activations, mean over places, as the network runs."""
    pooled: list[list[NDArray[np.float32]]] = []
    for block in net.get_submodule("backbone").get_submodule("blocks").children():
        values: list[NDArray[np.float32]] = []
        block.register_forward_hook(
            lambda _, __, out, values=values: values.append(out.mean((2, 3)).cpu().numpy())
        )
        pooled.append(values)
    return pooled


def random_codes(database: EncodedImages, queries: EncodedImages, bits: int) -> None:
    """Codes of the same F7 by H as PyTorch draws it, without bias, and by the baseline LSH."""

    def initial(seed: int) -> Callable[[Features], Codes]:
        torch.manual_seed(seed)
        drawn = nn.Linear(database.features.shape[1], bits).weight.detach().numpy().T
        return lambda features: pack_bits(features @ drawn >= 0)

    def lsh(seed: int) -> Callable[[Features], Codes]:
        return create_method("LSH", bits, seed=seed).fit(database.features).encode

    for name, draw in (("initial H, bcs", initial), ("LSH, bcs", lsh)):
        scores = []
        for seed in range(SEEDS):
            encode = draw(seed)
            stored, asked = (
                replace(one, codes=encode(one.features)) for one in (database, queries)
            )
            scores.append(scored(stored, asked, "bcs"))
        mean, spread = np.mean(scores, axis=0), np.std(scores, axis=0)
        print(f"  {name:<30} mAP@1000 {mean[0]:.4f} ± {spread[0]:.4f}", end="")
        print(f"  P@1 {mean[1]:.3f}  P@10 {mean[2]:.3f}")


def centred(stored: Features, asked: Features) -> tuple[Features, Features]:
    """Both less the stored ones' mean, of unit length."""
    moved = [one - stored.mean(axis=0) for one in (stored, asked)]
    lengths = [np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12) for one in moved]
    return moved[0] / lengths[0], moved[1] / lengths[1]


def scored(database: EncodedImages, queries: EncodedImages, mode: Mode) -> tuple[float, ...]:
    """mAP@1000, precision@1 and precision@10."""
    searcher = ArraySearcher(database.codes, database.features)
    bits = 8 * database.codes.shape[1]
    found = score_searcher(searcher, database, queries, bits=bits, modes=(mode,))
    values = found.modes[mode].to_dict()
    return values["map@1000"], values["precision@1"], values["precision@10"]


def show(name: str, database: EncodedImages, queries: EncodedImages, mode: Mode) -> None:
    """Print one row."""
    found = scored(database, queries, mode)
    print(f"  {name:<30} mAP@1000 {found[0]:.4f}  P@1 {found[1]:.3f}  P@10 {found[2]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:-2], *sys.argv[-2:])
