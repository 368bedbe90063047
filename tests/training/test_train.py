"""``hashlens.train``: same defaults and answers as the command; it loads only what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hashlens import InvalidInputError, ModelError, open_source, train
from hashlens.cli.main import app
from hashlens.models.checkpoint import load_model
from hashlens.training.config import options
from hashlens.training.folder import open_run
from hashlens.training.recipes import configure

QUICK = {"epochs": 2, "precision": "fp32", "validation": 0.2}


def test_the_function_and_the_command_give_the_same_model(folder: Path, tmp_path: Path) -> None:
    result = train(str(folder), tmp_path / "a", 16, **QUICK, progress=False)
    words = f"--out {tmp_path / 'b'} --bits 16 --epochs 2 --precision fp32 --validation 0.2 --json"
    answer = CliRunner().invoke(app, ["train", str(folder), *words.split()])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["fingerprint"] == result.fingerprint
    assert (said["recipe"], said["objective"]) == (result.config.recipe, "greedyhash")
    assert said["validation"] == result.history[result.best_epoch - 1]
    assert said["search"] == result.search
    assert f"recipe {result.config.recipe}: " in answer.stderr


def test_a_source_object_and_the_default_length(folder: Path, tmp_path: Path) -> None:
    result = train(open_source(folder), str(tmp_path / "m"), **QUICK, progress=False)
    assert result.out == tmp_path / "m"
    assert load_model(result.out)[1].bits == result.config.bits == 48


def test_options_that_are_not_known_or_not_allowed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="unknown key epochz"):
        train(folder, tmp_path / "m", epochz=3)
    with pytest.raises(InvalidInputError, match="bits: expected a whole number, 8 to 4096, got 4"):
        train(folder, tmp_path / "m", 4)
    assert not (tmp_path / "m").exists()


def test_without_labels(folder: Path, tmp_path: Path, frozen: dict[str, Any]) -> None:
    start = {"backbone": frozen["backbone"], "weights": Path(frozen["weights"]), "size": 32}
    result = train(folder, tmp_path / "m", 8, unsupervised=True, progress=False, seed=3, **start)
    net, saved = load_model(tmp_path / "m")
    assert (saved.fingerprint, saved.bits, net.classifier) == (result.fingerprint, 8, None)
    assert (saved.feature_scaling, saved.mode) == ("standardised", None)
    assert net.feature_scale is not None
    assert (result.training_images, result.best_epoch, result.history) == (20, 0, ())
    with pytest.raises(InvalidInputError, match="--unsupervised does not use epochs"):
        train(folder, tmp_path / "n", 8, unsupervised=True, epochs=3)


def test_a_resumed_run_has_its_own_options(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    config, _ = configure("small", {"bits": 16, **QUICK, "crop": 0.25}, source)
    open_run(tmp_path / "m", source, config, resume=False, overwrite=False)
    with pytest.raises(ModelError, match=r"has epochs 2 \(now 3\)"):
        train(source, tmp_path / "m", resume=True, epochs=3)
    with pytest.raises(ModelError, match=r"has recipe small \(now finetune\)"):
        train(source, tmp_path / "m", recipe="finetune", resume=True)
    result = train(source, tmp_path / "m", recipe="small", resume=True, progress=False)
    assert result.config == config


def test_a_run_of_an_older_version_is_resumed(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    config, _ = configure("small", {"bits": 16, **QUICK}, source)
    open_run(tmp_path / "m", source, config, resume=False, overwrite=False)
    path = tmp_path / "m" / "run" / "config.toml"
    new = ("latent_dropout", "latent_std", "latent_bias", "bias_rate")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(new)))
    assert len(path.read_text().splitlines()) == len(lines) - len(new)
    assert train(source, tmp_path / "m", resume=True, progress=False).config == config


def test_every_option_of_the_configuration_is_an_option_of_the_command() -> None:
    words, wanted = [], {"recipe": "small"}
    for option in options():
        if option.name == "recipe":
            continue
        on = option.flag.split("/")[0]
        if option.kind is bool:
            words.append(on)
            wanted[option.name] = True
        else:
            value = option.choices[-1] if option.choices else option.kind(option.high or 9)
            words += [on, str(value)]
            wanted[option.name] = value
    answer = CliRunner().invoke(app, ["train", "--show-config", *words])
    assert answer.exit_code == 0, answer.output
    assert tomllib.loads(answer.stdout) == wanted


_RUN = """
import sys
from hashlens import train
train(sys.argv[1], sys.argv[2], 16, epochs=1, validation=0.2, objective=sys.argv[3], progress=False)
print(*sys.modules)
"""


@pytest.mark.parametrize(("objective", "loaded"), [("greedyhash", False), ("cnnh", True)])
def test_training_loads_numba_and_baselines_only_where_the_objective_needs_them(
    folder: Path, tmp_path: Path, objective: str, loaded: bool
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), str(tmp_path / "m"), objective],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(answer.stdout.split())
    assert "hashlens.training.fit" in modules
    assert ("numba" in modules, "hashlens.baselines" in modules) == (loaded, loaded)
    assert "hashlens.training.objectives.pairs" not in modules


def test_the_names_of_objectives_need_no_torch() -> None:
    code = "import sys; from hashlens.training.config import TrainingConfig; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert {"torch", "numpy"}.isdisjoint(answer.stdout.split())
