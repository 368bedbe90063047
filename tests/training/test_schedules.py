"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from hashlens.training.module import rate_share


def test_step_is_the_authors_schedule() -> None:
    assert rate_share("step", 24_999, 50_000) == 1.0
    assert rate_share("step", 25_000, 50_000) == 0.1


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_rises_once_then_falls_to_nothing(schedule: str) -> None:
    total = 100
    shares = [rate_share(schedule, step, total, 0.2) for step in range(total + 1)]
    peak = shares.index(max(shares))
    assert peak == 20
    assert shares[peak] == pytest.approx(1.0)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert min(shares[:-1]) > 0
    assert shares[-1] == pytest.approx(0.0)


def test_onecycle_is_straight_and_cosine_is_not() -> None:
    assert rate_share("onecycle", 60, 100, 0.2) == pytest.approx(0.5)
    assert rate_share("cosine", 40, 100, 0.2) > 0.8


def test_a_run_of_one_step_has_a_rate() -> None:
    for schedule in ("step", "onecycle", "cosine"):
        assert rate_share(schedule, 0, 1, 0.2) > 0
