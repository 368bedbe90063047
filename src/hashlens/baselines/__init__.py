"""The methods that the paper compares with, one a file: ``fit``, then ``encode``.

A new method is one file with a subclass of ``UnsupervisedMethod`` or ``SupervisedMethod``, and
one line in ``METHODS``; see docs/guides/add-a-method.md.
"""

from __future__ import annotations

from hashlens.baselines.base import HashMethod, SupervisedMethod, UnsupervisedMethod
from hashlens.baselines.bre import BRE
from hashlens.baselines.itq import ITQ
from hashlens.baselines.itq_cca import ITQCCA
from hashlens.baselines.ksh import KSH
from hashlens.baselines.lsh import LSH
from hashlens.baselines.mlh import MLH
from hashlens.baselines.spectral import SpectralHashing

METHODS: dict[str, type[HashMethod]] = {
    "LSH": LSH,
    "SH": SpectralHashing,
    "ITQ": ITQ,
    "BRE": BRE,
    "MLH": MLH,
    "ITQ-CCA": ITQCCA,
    "KSH": KSH,
}
"""Name in tables and figures -> class, weakest printed result first."""

__all__ = ["METHODS", "HashMethod", "SupervisedMethod", "UnsupervisedMethod"]
