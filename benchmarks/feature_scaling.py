"""How F7 is best compared: exhaustive and coarse-to-fine search under each scaling.

``python benchmarks/feature_scaling.py MODEL DATABASE QUERIES`` prints mAP@1000 and precision at k
of ``es`` and ``hds`` for features as the network makes them, centred, and standardised (the last
two of unit length); statistics come from the database. Codes are the same in every row. MODEL must
keep its features as the network makes them (``feature_scaling: none`` in its model.json).
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from hashlens import Encoder, ModelError, open_source
from hashlens.evaluation.scoring import score_searcher
from hashlens.index.ranking import ArraySearcher
from hashlens.models.description import FEATURE_SCALINGS
from hashlens.models.encoder import encode_source
from hashlens.models.latent import scaled_features
from hashlens.training.choice import feature_statistics

KS = (1, 5, 10, 20, 50)


def main(model: str, database_name: str, queries_name: str) -> None:
    """Encode both sets once, and score each scaling."""
    encoder = Encoder.load(model)
    if encoder.config.feature_scaling != "none":
        raise ModelError(f"{model}: its features are {encoder.config.feature_scaling} already")
    database = encode_source(encoder, open_source(database_name))
    queries = encode_source(encoder, open_source(queries_name))
    print("scaling       mode  mAP@1000  " + "  ".join(f"P@{k:<3}" for k in KS))
    f7 = torch.from_numpy(database.features)
    for scaling in FEATURE_SCALINGS:
        db, asked = database, queries
        if scaling != "none":
            statistics = feature_statistics(f7, scaling)
            db, asked = (
                replace(
                    one,
                    features=scaled_features(torch.from_numpy(one.features), *statistics).numpy(),
                )
                for one in (database, queries)
            )
        searcher = ArraySearcher(db.codes, db.features)
        found = score_searcher(searcher, db, asked, bits=encoder.bits, modes=("es", "hds"))
        for mode, scores in found.modes.items():
            values = scores.to_dict()
            row = "  ".join(f"{values[f'precision@{k}']:.3f}" for k in KS)
            print(f"{scaling:<13} {mode:<5} {values['map@1000']:.4f}    {row}")


if __name__ == "__main__":
    main(*sys.argv[1:])
