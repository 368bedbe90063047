"""A killed run, resumed, ends where an unbroken one does."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hashlens import ModelError, open_source
from hashlens.training.config import TrainingConfig
from hashlens.training.fit import fit
from hashlens.training.recipes import configure

EPOCHS = 10


def _config() -> TrainingConfig:
    values = {"bits": 16, "epochs": EPOCHS, "precision": "fp32", "validation": 0.2}
    return configure("small", values, open_source("digits#train"))[0]


def _start(out: Path, epochs: int = EPOCHS) -> subprocess.Popen[bytes]:
    command = "from hashlens.cli.main import main; main()"
    options = f"--bits 16 --epochs {epochs} --precision fp32 --validation 0.2 --recipe small"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            command,
            "train",
            "digits#train",
            "--out",
            str(out),
            *options.split(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """A shell's background job ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_state(process: subprocess.Popen[bytes], out: Path) -> None:
    while not (out / "run" / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)


def _rates(out: Path) -> list[tuple[int, str]]:
    rows = []
    for log in sorted((out / "logs" / "csv").glob("*/metrics.csv")):
        with log.open() as file:
            rows += [
                (int(row["step"]), row["rate"]) for row in csv.DictReader(file) if row.get("rate")
            ]
    return sorted(set(rows))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes: sums over another number of threads are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "m"
    fit(open_source("digits#train"), _config(), out, progress=False)
    return out


def test_a_killed_run_ends_where_an_unbroken_one_does(unbroken: Path, tmp_path: Path) -> None:
    from hashlens.models.checkpoint import read_config

    out = tmp_path / "m"
    process = _start(out)
    _wait_for_state(process, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.json").exists()
    source, config = open_source("digits#train"), _config()
    with pytest.raises(ModelError, match="unfinished run; continue with --resume"):
        fit(source, config, out, progress=False)
    with pytest.raises(ModelError, match=r"has bits 16 \(now 32\)"):
        fit(source, config.with_values({"bits": 32}), out, resume=True, progress=False)
    with pytest.raises(ModelError, match="other images"):
        fit(source.subset(range(900)), config, out, resume=True, progress=False)
    result = fit(source, config, out, resume=True, progress=False)
    assert [entry["epoch"] for entry in result.history] == list(range(1, EPOCHS + 1))
    whole, resumed = read_config(unbroken)[0], read_config(out)[0]
    assert resumed.training["best epoch"] == whole.training["best epoch"]
    for name, value in whole.training["validation"].items():
        assert resumed.training["validation"][name] == pytest.approx(value, abs=1e-3)
    # Steps and rates are those of one run.
    assert _rates(out) == _rates(unbroken)
    with pytest.raises(ModelError, match="this run is complete; to train on, give --from"):
        fit(source, config, out, resume=True, progress=False)


def test_ctrl_c_keeps_the_last_epoch_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "m"
    process = _start(out, epochs=1000)  # more than can be over before the signal comes
    _wait_for_state(process, out)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    assert "repeat the command with --resume" in output
    assert "Traceback" not in output
    assert (out / "run" / "last.safetensors").exists()
