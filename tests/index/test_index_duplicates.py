"""Near-duplicates: groups by chains of pairs."""

from __future__ import annotations

import numpy as np

from hashlens import HashIndex
from hashlens.codes.pairs import group_pairs


def test_duplicates_are_grouped_by_chains(index: HashIndex) -> None:
    base = np.random.default_rng(3).integers(0, 256, (6, 6), dtype=np.uint8)
    near = base[0].copy()
    near[0] ^= 3
    far = near.copy()
    far[1] ^= 3  # 2 bits from `near`, 4 from base[0]
    codes = np.array([*base, far, base[4], near, base[4]])
    index.add_encoded(codes, np.zeros((10, 36)), ["u"] * 10)
    assert index.duplicates(0) == ([[4, 7, 9]], 3)
    assert index.duplicates(2) == ([[0, 6, 8], [4, 7, 9]], 5)
    index.remove([8, 9])
    assert index.duplicates(2) == ([[4, 7]], 1)


def test_grouping_equals_a_plain_search_for_components() -> None:
    rng = np.random.default_rng(0)
    left, right = np.sort(rng.integers(0, 300, (2, 200)), axis=0)
    groups, pairs = group_pairs(300, [(left[:90], right[:90]), (left[90:], right[90:])])
    members = [{i} for i in range(300)]
    for a, b in zip(left, right, strict=True):
        if members[a] is not members[b]:
            members[a] |= members[b]
            for i in members[b]:
                members[i] = members[a]
    expected = sorted({tuple(sorted(group)) for group in members if len(group) > 1})
    assert [tuple(group.tolist()) for group in groups] == expected
    assert pairs == 200
