"""How a trained model is best searched: the scaling of F7 and the mode, by validation images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from hashlens.evaluation.metrics import CUTOFF, average_precision, shares_label
from hashlens.machine import has_cuda
from hashlens.models.description import FEATURE_SCALINGS, FeatureScaling
from hashlens.models.latent import LatentHashNet, scaled_features
from hashlens.report.progress import ProgressBar, say
from hashlens.training.data import Batch, Inputs, Rows, Split, Targets, ValidationBatches
from hashlens.training.module import HashModule
from hashlens.types import Mode, default_pool

DATABASE = 20_000
"""Most training images that are searched."""

QUERIES = 2_000
"""Most validation images that search them."""

K = 10
CHEAPER_FIRST: tuple[Mode, ...] = ("bcs", "acs", "hds", "es")
_BATCH, _QUERIES_AT_A_TIME = 256, 100


class Encoded(NamedTuple):
    """What a network makes of n images, and their labels."""

    latent: Tensor  # (n, h)
    features: Tensor  # (n, d): F7 itself
    targets: Targets


def choose_search(
    module: HashModule, inputs: Inputs, targets: Targets, split: Split, console: Console
) -> dict[str, Any]:
    """Give the trained network its feature scaling; return scaling, mode and their figures.

    The validation images search the training images, both at most so many as the constants above
    say, drawn with the seed.
    """
    device = torch.device("cuda" if has_cuda() else "cpu")
    module.to(device).eval()
    seed = module.config.seed
    training, validation = drawn(split.training, DATABASE, seed), split.validation
    # Without labels nothing says what is found rightly.
    validation = drawn(validation, QUERIES if (targets >= 0).all() else 0, seed)
    total = len(training) + len(validation)
    with ProgressBar("comparing modes", total, console=console) as progress:
        database = _encoded(module, inputs, targets, training, progress)
        queries = _encoded(module, inputs, targets, validation, progress)
    module.cpu()
    figures = compare_searches(database, queries)
    scale_features(module.net, database.features, figures["feature_scaling"])
    if figures["mode"] is not None:
        say(console, _in_words(figures))
    return figures


def compare_searches(database: Encoded, queries: Encoded) -> dict[str, Any]:
    """Choose feature scaling and mode for queries like these; without any, standardised and None.

    The scaling is the one by which exhaustive search has the highest mAP@1000; the mode then the
    one with the highest precision@10, of equal ones the cheapest.
    """
    if len(queries.targets) == 0:
        return {"feature_scaling": "standardised", "mode": None}
    maps = {scaling: _exhaustive_map(database, queries, scaling) for scaling in FEATURE_SCALINGS}
    scaling = max(maps, key=maps.__getitem__)
    precision = _precision(database, queries, scaling)
    return {
        "feature_scaling": scaling,
        "mode": max(CHEAPER_FIRST, key=precision.__getitem__),
        "es_map": maps,
        f"precision@{K}": precision,
        "images": {"database": len(database.targets), "queries": len(queries.targets)},
    }


def scale_features(net: LatentHashNet, features: Tensor, scaling: FeatureScaling) -> None:
    """Set a network's feature scaling from the F7 (n, d) of its training images."""
    if scaling != "none":
        net.set_feature_scaling(*feature_statistics(features, scaling))


def feature_statistics(features: Tensor, scaling: FeatureScaling) -> tuple[Tensor, Tensor]:
    """Mean and scale (d,) of F7; a dimension that is the same for all images gets scale 0."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    if scaling == "centred":
        return mean, torch.ones_like(mean)
    varies = deviation > 1e-6 * deviation.max()
    return mean, torch.where(varies, 1 / deviation, 0.0)


def drawn(rows: Rows, most: int, seed: int) -> Rows:
    """At most so many of the rows, at random, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


@torch.no_grad()
def _encoded(
    module: HashModule, inputs: Inputs, targets: Targets, rows: Rows, progress: ProgressBar
) -> Encoded:
    latent, features = [torch.zeros(0, module.net.bits)], [torch.zeros(0, module.net.feature_dim)]
    read = [rows[:0]]
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        for batch in ValidationBatches(inputs.pixels, targets, some, batch_size=_BATCH):
            on_device = Batch(*(part.to(module.device) for part in batch))
            output = module.output(module.net, on_device, augment=False)
            latent.append(output.latent.float().cpu())
            features.append(output.features.float().cpu())
            read.append(batch.rows.numpy())
            progress(len(some))
    return Encoded(torch.cat(latent), torch.cat(features), targets[np.concatenate(read)])


def _exhaustive_map(database: Encoded, queries: Encoded, scaling: FeatureScaling) -> float:
    total = 0.0
    for _, euclidean, relevant in _blocks(database, queries, scaling):
        ranked = relevant.gather(1, _nearest(euclidean, CUTOFF))
        total += float(average_precision(ranked.numpy()).sum())
    return total / len(queries.targets)


def _precision(database: Encoded, queries: Encoded, scaling: FeatureScaling) -> dict[Mode, float]:
    """Precision at K of each mode, as an index ranks: the pool of a search for K, ties by place."""
    signs = _signs(database.latent)
    found = dict.fromkeys(CHEAPER_FIRST, 0)
    for part, euclidean, relevant in _blocks(database, queries, scaling):
        latent = queries.latent[part]
        hamming = -_signs(latent) @ signs.T  # twice the distance, less the bits
        pool = _nearest(hamming, default_pool(K)).sort(dim=1).values
        differs = signs[pool] != _signs(latent)[:, None]
        asymmetric = (latent.abs()[:, None] * differs).sum(dim=2)
        orders: dict[Mode, Tensor] = {
            "bcs": _nearest(hamming, K),
            "acs": pool.gather(1, _nearest(asymmetric, K)),
            "hds": pool.gather(1, _nearest(euclidean.gather(1, pool), K)),
            "es": _nearest(euclidean, K),
        }
        for mode, order in orders.items():
            found[mode] += int(relevant.gather(1, order).sum())
    return {mode: count / (K * len(queries.targets)) for mode, count in found.items()}


def _blocks(
    database: Encoded, queries: Encoded, scaling: FeatureScaling
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some queries at a time: distances of features so scaled, and what is relevant, (q, n)."""
    stored, asked = database.features, queries.features
    if scaling != "none":
        statistics = feature_statistics(stored, scaling)
        stored, asked = (scaled_features(each, *statistics) for each in (stored, asked))
    for start in range(0, len(asked), _QUERIES_AT_A_TIME):
        part = slice(start, start + _QUERIES_AT_A_TIME)
        relevant = shares_label(queries.targets[part], database.targets)
        yield part, torch.cdist(asked[part], stored), torch.from_numpy(relevant)


def _signs(latent: Tensor) -> Tensor:
    """Bits as -1 and 1."""
    return latent.ge(0).float() * 2 - 1


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Places of the k smallest distances of each row, ties by place."""
    return distances.sort(dim=1, stable=True).indices[:, :k]


def _in_words(figures: dict[str, Any]) -> str:
    def listed(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in values.items())

    return (
        f"features: {figures['feature_scaling']} (mAP@{CUTOFF} of exhaustive search: "
        f"{listed(figures['es_map'])}); best mode: {figures['mode']} (precision@{K}: "
        f"{listed(figures[f'precision@{K}'])}; validation images searched in training images)"
    )
