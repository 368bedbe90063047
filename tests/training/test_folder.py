"""The resume state: whole or not at all, and never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hashlens import ModelError
from hashlens.training.folder import read_state, write_state

_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text()
    | st.floats(allow_nan=False)
)
_NESTED = st.recursive(
    _PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=_NESTED)
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "s.safetensors"
    write_state(value, path)
    assert read_state(path) == value


def test_an_optimizers_state_comes_back(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "shared": [weight, weight]}
    write_state(state, tmp_path / "s")
    back = read_state(tmp_path / "s")
    torch.testing.assert_close(
        back["optimizer"]["state"][0]["exp_avg"],
        optimizer.state_dict()["state"][0]["exp_avg"],
        rtol=0,
        atol=0,
    )
    assert back["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    torch.testing.assert_close(back["shared"][1], weight.detach(), rtol=0, atol=0)


def test_objects_are_refused_and_the_old_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state({"epoch": 1}, path)
    with pytest.raises(TypeError, match="cannot keep a object"):
        write_state({"epoch": object()}, path)
    assert read_state(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 5, 40, 200])
def test_a_cut_state_is_one_clear_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s"
    write_state({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="--overwrite"):
        read_state(path)


def test_a_missing_state_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a whole training state"):
        read_state(tmp_path / "nothing")
