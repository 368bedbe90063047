"""How many shuffled labels does `hashlens labels` put first?

The labels of a share of the images are permuted among these images, several times with different
seeds; each time the report's ranking is made again from the features of a frozen backbone.

Run: python benchmarks/label_noise.py --data /data/cifar10#train --weights mobilenetv2.safetensors

With cleanlab installed, its confident learning stands next to it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from hashlens import Encoder, __version__, open_source
from hashlens.machine import cores
from hashlens.models.backbones import create_backbone
from hashlens.models.checkpoint import save_model
from hashlens.models.description import ModelConfig
from hashlens.models.latent import LatentHashNet
from hashlens.report.page import Table
from hashlens.types import Features
from hashlens.workflows.labels import ClassScores, Suspicion, leave_one_out_scores, suspicion
from hashlens.workflows.score import encode

Labels = NDArray[np.int64]


class Found(NamedTuple):
    """What one ranking found: ``wrong`` labels in all, those among the first, how many of these
    have their true class proposed, and labels called likely wrong."""

    wrong: int
    among_first: int
    auc: float
    corrected: float
    flagged: int
    flagged_wrong: int


def frozen_encoder(name: str, size: int, weights: Path, classes: tuple[str, ...]) -> Encoder:
    """A model whose backbone has seen no label; layer H is random and is not used here."""
    backbone = create_backbone(name, size=size, weights=weights)
    torch.manual_seed(0)
    net = LatentHashNet(
        backbone.module, feature_dim=backbone.feature_dim, bits=48, classes=len(classes)
    )
    config = ModelConfig(48, backbone.feature_dim, classes, name, backbone.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), net, config)
        return Encoder.load(folder)


def shuffle(labels: Labels, share: float, seed: int) -> Labels:
    """Permute the labels of a share of the images among these images."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    shuffled = labels.copy()
    shuffled[rows] = rng.permutation(labels[rows])
    return shuffled


def neighbour_votes(neighbours: Labels, labels: Labels, classes: int) -> ClassScores:
    """Share of each image's neighbours that have each label."""
    known = neighbours >= 0
    rows = np.broadcast_to(np.arange(len(neighbours))[:, None], neighbours.shape)
    keys = rows[known] * classes + labels[neighbours[known]]
    counts = np.bincount(keys, minlength=len(neighbours) * classes).reshape(-1, classes)
    return np.asarray(counts / np.maximum(known.sum(axis=1), 1)[:, None], np.float64)


def by_cleanlab(features: Features, shown: Labels) -> Suspicion:
    """Confident learning by cleanlab, on out-of-sample probabilities of a logistic regression."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    given = cross_val_predict(model, features, shown, cv=folds, method="predict_proba")
    doubt = 1 - get_label_quality_scores(shown, given)
    others = np.where(np.arange(given.shape[1]) == shown[:, None], -1, given).argmax(axis=1)
    order = np.argsort(-doubt, kind="stable")
    return Suspicion(doubt, others, find_label_issues(shown, given), order)


def score(true: Labels, shown: Labels, ranking: Suspicion, first: int) -> Found:
    """Compare a ranking with the truth."""
    wrong = shown != true
    top = ranking.order[:first]
    ranks = np.empty(len(true))
    ranks[ranking.order[::-1]] = np.arange(1, len(true) + 1)
    lowest = wrong.sum() * (wrong.sum() + 1) / 2
    hits = top[wrong[top]]
    return Found(
        int(wrong.sum()),
        len(hits),
        float((ranks[wrong].sum() - lowest) / (wrong.sum() * (~wrong).sum())),
        float((ranking.looks_like[hits] == true[hits]).mean()),
        int(ranking.likely_wrong.sum()),
        int(wrong[ranking.likely_wrong].sum()),
    )


def main() -> None:
    """Parse arguments, encode once, shuffle several times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--backbone", default="timm:mobilenetv2_100?pad_type=same")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--per-class", type=int, help="the first so many images of each class")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--first", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", type=Path, help="keep the features in this .npy file")
    options = parser.parse_args()
    source = open_source(options.data)
    chosen = np.arange(min(options.images, len(source)))
    if options.per_class is not None:
        each = (np.flatnonzero(source.labels == label) for label in range(len(source.classes)))
        chosen = np.concatenate([rows[: options.per_class] for rows in each])
    source = source.subset(chosen)
    encoder = frozen_encoder(options.backbone, options.size, options.weights, source.classes)
    if options.features is not None and options.features.exists():
        features = np.load(options.features)
    else:
        features = encode(encoder, source, strict=True, progress=True).features
        if options.features is not None:
            np.save(options.features, features)
    true, classes = source.labels, len(source.classes)
    nearest = NearestNeighbors(n_neighbors=20, metric="cosine").fit(features)
    neighbours = nearest.kneighbors(return_distance=False)  # without the image itself
    methods: dict[str, Callable[[Labels], Suspicion]] = {
        "report (leave-one-out ridge)": lambda shown: suspicion(
            leave_one_out_scores(features, shown, classes), shown
        ),
        "votes of 20 neighbours": lambda shown: suspicion(
            neighbour_votes(neighbours, shown, classes), shown
        ),
    }
    if find_spec("cleanlab"):
        methods["cleanlab"] = lambda shown: by_cleanlab(features, shown)
    rows = []
    for name, method in methods.items():
        start = time.perf_counter()
        shown = [shuffle(true, options.share, seed) for seed in range(options.seeds)]
        found = [score(true, one, method(one), options.first) for one in shown]
        seconds = (time.perf_counter() - start) / options.seeds
        hits = np.array([one.among_first for one in found])
        wrong = np.array([one.wrong for one in found])
        print(f"{name}: {found}")
        rows.append(
            [
                name,
                f"{wrong.mean():,.0f}",
                f"{hits.mean():,.0f} ± {hits.std(ddof=1):.0f}",
                f"{100 * (hits / options.first).mean():.1f} %",
                f"{100 * (hits / wrong).mean():.1f} %",
                f"{np.mean([one.auc for one in found]):.3f}",
                f"{100 * np.mean([one.corrected for one in found]):.1f} %",
                f"{np.mean([one.flagged for one in found]):,.0f}",
                f"{np.mean([one.flagged_wrong for one in found]):,.0f}",
                f"{seconds:.1f}",
            ]
        )
    chance = options.first / len(true)
    rows.append(
        [
            "chance",
            rows[0][1],
            f"{chance * wrong.mean():,.0f}",
            f"{100 * wrong.mean() / len(true):.1f} %",
            f"{100 * chance:.1f} %",
            "0.500",
            None,
            None,
            None,
            None,
        ]
    )
    headers = [
        "ranking",
        "labels changed",
        f"of them in the first {options.first:,}",
        "precision",
        "recall",
        "AUC",
        "true class proposed",
        "called likely wrong",
        "of them changed",
        "s",
    ]
    print(Table(headers, rows).markdown())
    print(
        f"{len(true):,} images, {options.size} px; seeds 0 to "
        f"{options.seeds - 1}; hashlens {__version__}, torch {torch.__version__}, NumPy "
        f"{np.__version__}, Python {platform.python_version()}, {cores()} cores"
    )


if __name__ == "__main__":
    main()
