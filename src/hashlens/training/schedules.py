"""Learning-rate schedules: the share of the peak rate at each step."""

from __future__ import annotations

import math


def rate_share(schedule: str, step: int, total: int, warmup: float = 0.0) -> float:
    """Share of the peak learning rate at a step.

    Parameters
    ----------
    schedule : {"step", "onecycle", "cosine"}
        ``step``: 1, then 0.1 from half of the steps on (the authors' solver: x0.1 after 25,000 of
        50,000 iterations). ``onecycle``: rises and falls in straight lines. ``cosine``: rises in a
        straight line, then falls as half a cosine.
    step : int
        Optimizer steps done, 0 to total.
    total : int
        Optimizer steps of the whole run.
    warmup : float
        Share of the steps in which ``onecycle`` and ``cosine`` rise.

    Returns
    -------
    float
        0 to 1; never 0 before the last step.
    """
    if schedule == "step":
        return 1.0 if 2 * step < total else 0.1
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    left = max(0.0, (total - step) / max(total - rise, 1.0))
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(left, 1.0)))
    return min(left, 1.0)
