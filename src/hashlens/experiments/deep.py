"""The methods that learn features and codes together: ours, CNNH and CNNH+."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashlens.data.source import Source
from hashlens.experiments.published import OURS
from hashlens.experiments.results import file_name
from hashlens.models.checkpoint import CONFIG_NAME
from hashlens.models.encoder import Encoder
from hashlens.training.config import TrainingConfig

OBJECTIVES = {"CNNH": "cnnh", "CNNH+": "cnnh+", OURS: "latent"}


@dataclass(frozen=True)
class DeepMethod:
    """A method whose codes come from a network of its own.

    Parameters
    ----------
    name : str
        A key of ``OBJECTIVES``.
    bits : int
        Length of a code.
    training : mapping of str to value
        A recipe's name under ``recipe``, and values that win over it.
    seed : int
        Of the training run.
    model : Path, optional
        A trained model of so many bits, to use instead of training one.
    """

    name: str
    bits: int
    training: Mapping[str, Any]
    seed: int
    model: Path | None = None

    def configuration(self, train: Source) -> dict[str, Any]:
        """All that decides the model, as JSON values.

        Parameters
        ----------
        train : Source
            The training images.
        """
        if self.model is not None:
            return {"model": Encoder.load(self.model).fingerprint}
        values = dataclasses.asdict(self._config(train))
        return {"training": values, "training_images": len(train)}

    def encoder(self, train: Source, folder: Path) -> tuple[Encoder, float]:
        """The trained model, and the seconds that its training took here (0: it was there).

        A run that was interrupted is continued.

        Parameters
        ----------
        train : Source
            The training images; no other image or label is seen.
        folder : Path
            Where models are kept.
        """
        if self.model is not None:
            return Encoder.load(self.model), 0.0
        from hashlens.training.fit import train as fit
        from hashlens.training.run import RUN

        text = json.dumps(self.configuration(train), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        out = folder / f"{file_name(self.name)}-{self.bits}-{digest}"
        started = time.monotonic()
        if (out / RUN).is_dir() or not (out / CONFIG_NAME).is_file():
            fit(train, self._config(train), out, resume=(out / RUN).is_dir())
            return Encoder.load(out), time.monotonic() - started
        return Encoder.load(out), 0.0

    def _config(self, train: Source) -> TrainingConfig:
        from hashlens.training.recipes import configure
        from hashlens.training.split import image_facts

        values = dict(self.training)
        recipe = str(values.pop("recipe", "auto"))
        values |= {"bits": self.bits, "objective": OBJECTIVES[self.name], "seed": self.seed}
        return configure(recipe, values, image_facts(train))[0]
