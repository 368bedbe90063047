"""A whole run: it learns, keeps the best epoch, and says what it left out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashlens import Encoder, InvalidInputError, ModelError, SourceError, hamming_topk, open_source
from hashlens.data.labels import rows_to_learn, without_labels
from hashlens.data.source import Source
from hashlens.models.checkpoint import load_model
from hashlens.training.config import TrainingConfig
from hashlens.training.fit import ShowProgress, fit, take_over
from hashlens.training.folder import TrainingResult, open_run
from hashlens.training.objectives import objectives
from hashlens.training.recipes import configure, taught
from image_builders import write_class_folder

Quick = Callable[..., TrainingConfig]
NEED_NONE = [name for name, declared in objectives().items() if not declared.labels]


def _train_folder(
    folder: Path, out: Path, *, resume: bool = False, features: Path | None = None, **values: object
) -> TrainingResult:
    source = open_source(str(folder))
    defaults = {"bits": 8, "epochs": 1, "validation": 0.2, "precision": "fp32"}
    config, _ = configure("small", {**defaults, **values}, source)
    return fit(source, config, out, resume=resume, progress=False, features=features)


def test_of_few_validation_images_the_loss_chooses_the_epoch(tmp_path: Path) -> None:
    """Two per class: whether an image finds the other one says little."""
    write_class_folder(tmp_path / "c", per_class=10)
    result = _train_folder(tmp_path / "c", tmp_path / "m", epochs=12, seed=1)
    assert result.validation_images == 6
    best = next(e for e in result.history if e["epoch"] == result.best_epoch)
    assert best["loss"] == min(epoch["loss"] for epoch in result.history)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| epoch chosen by | lowest loss of the validation images |" in card
    first_best = max(result.history, key=lambda epoch: epoch["map"])
    assert first_best["epoch"] != result.best_epoch  # where mAP had chosen another


@pytest.mark.parametrize("objective", objectives())
def test_every_objective_learns_digits(
    digits: Source, quick: Quick, tmp_path: Path, objective: str
) -> None:
    # Pairs and views say less in a step than a classifier does.
    longer = {"dpsh": 60, "hashnet": 60, "crovca": 40}
    config = quick(epochs=longer.get(objective, 15), objective=objective)
    result = fit(digits, config, tmp_path / "m", progress=False)
    best = next(e for e in result.history if e["epoch"] == result.best_epoch)
    assert best["map"] == max(epoch["map"] for epoch in result.history)
    # No label shapes the codes of softmax and these two; F8 of the latter reads such codes.
    assert best["map"] > (0.4 if objective in ("softmax", *NEED_NONE) else 0.9)
    accuracy = 0.3 if objective in NEED_NONE else 0.9
    assert best["accuracy"] > accuracy
    net, saved = load_model(tmp_path / "m")
    assert (saved.bits, saved.fingerprint) == (16, result.fingerprint)
    assert saved.training["validation"]["map"] == best["map"]
    assert {p.name for p in (tmp_path / "m").iterdir()} >= {"model.json", "config.toml", "logs"}
    assert not (tmp_path / "m" / "run").exists()
    # What is saved is what was validated.
    pixels = np.stack([saved.preprocessing.pixels(digits.load(i)) for i in range(50)])
    with torch.inference_mode():
        scores = net(torch.from_numpy(saved.preprocessing.normalise(pixels))).scores
    assert float((scores.argmax(1).numpy() == digits.labels[:50]).mean()) > accuracy


@pytest.mark.parametrize("objective", NEED_NONE)
def test_objectives_that_need_no_labels_learn_from_images_alone(
    digits: Source, tmp_path: Path, objective: str
) -> None:
    alone = without_labels(digits)
    config, _ = configure("small", {"bits": 16, "epochs": 6, "objective": objective}, alone)
    result = fit(alone, config, tmp_path / "m", progress=False)
    assert result.training_images + result.validation_images == 400
    if objective == "bihalf":  # its target moves: the losses of two epochs do not compare
        best, chosen_by = result.history[-1], "its number, the last"
    else:
        best = min(result.history, key=lambda epoch: epoch["loss"])
        chosen_by = "lowest loss of the validation images"
    assert (result.best_epoch, result.chosen_by) == (best["epoch"], chosen_by)
    assert (best["map"], best["accuracy"]) == (None, None)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert not any("chance" in warning for warning in result.warnings)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "mean_average_precision" not in card
    encoder = Encoder.load(tmp_path / "m")
    assert encoder.classes == ()
    codes, _ = encoder.encode([digits.load(i) for i in range(400)])
    _, found = hamming_topk(codes, codes, k=10)
    assert (digits.labels[found] == digits.labels[:, None]).mean() > 0.4  # 0.1 by chance


@pytest.mark.parametrize("objective", NEED_NONE)
def test_some_labels_are_not_read_and_all_images_used(folder: Path, objective: str) -> None:
    source = open_source(str(folder))
    config, _ = configure("small", {"objective": objective}, source)
    assert taught(source, config) is source
    partly = dataclasses.replace(source, labels=np.where(np.arange(20) < 3, -1, source.labels))
    used = taught(partly, config)
    assert (used.classes, len(rows_to_learn(used))) == ((), 20)
    assert used.notes[-1] == "3 of 20 have no label: none is read, all are used"
    one = taught(source.subset(source.labels == 0), config)
    assert (one.classes, len(rows_to_learn(one))) == ((), 10)
    balanced = dataclasses.replace(config, balanced=True)  # which reads labels
    with pytest.raises(SourceError, match="needs labels"):
        taught(without_labels(source), balanced)


def test_the_same_seed_gives_the_same_model(digits: Source, quick: Quick, tmp_path: Path) -> None:
    config = quick()
    first, second = (fit(digits, config, tmp_path / name, progress=False) for name in ("a", "b"))
    assert first.history == second.history
    assert first.fingerprint == second.fingerprint
    other = fit(digits, quick(seed=1), tmp_path / "c", progress=False)
    assert other.fingerprint != first.fingerprint


def test_a_frozen_backbone_stays_as_it_was(
    folder: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    _train_folder(folder, tmp_path / "m", **frozen, epochs=2)
    net, _ = load_model(tmp_path / "m")
    start = torch.load(frozen["weights"])
    for name, value in net.backbone.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=0)


def test_unreadable_and_unlabelled_images_are_left_out_and_counted(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "dark" / "cut.png").write_bytes((folder / "dark" / "0.png").read_bytes()[:100])
    (folder / "dark" / "empty.jpg").touch()
    result = _train_folder(folder, tmp_path / "m")
    assert sorted(Path(one.name).name for one in result.skipped) == ["cut.png", "empty.jpg"]
    assert any("2 images could not be read" in note for note in result.warnings)
    assert result.training_images + result.validation_images == 20
    source = open_source(str(folder))
    labels = source.labels.copy()
    labels[:3] = -1
    partly = dataclasses.replace(source, labels=labels)
    config, _ = configure("small", {"epochs": 1, "validation": 0.2}, partly)
    result = fit(partly, config, tmp_path / "n", progress=False)
    assert any("3 of 22 images have no label" in note for note in result.warnings)


def test_strict_stops_at_an_unreadable_image(folder: Path, tmp_path: Path) -> None:
    (folder / "dark" / "empty.png").touch()
    source = open_source(str(folder))
    config, _ = configure("small", {"epochs": 1, "validation": 0.2}, source)
    with pytest.raises(SourceError, match=r"empty\.png"):
        fit(source, config, tmp_path / "m", strict=True, progress=False)


def test_copies_of_training_images_do_not_validate(folder: Path, tmp_path: Path) -> None:
    for i in range(10, 20):  # ten copies: some land in validation
        shutil.copy(folder / "light" / "3.png", folder / "light" / f"{i}.png")
    result = _train_folder(folder, tmp_path / "m", validation=0.3)
    assert any("exact copies of training images" in note for note in result.warnings)
    assert result.training_images + result.validation_images < 30


def test_images_too_many_for_memory_are_streamed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "dark" / "cut.png").write_bytes((folder / "dark" / "0.png").read_bytes()[:100])
    held = _train_folder(folder, tmp_path / "m", epochs=2)
    monkeypatch.setattr("hashlens.training.data.available_memory", lambda: 2000)
    streamed = _train_folder(folder, tmp_path / "n", epochs=2)
    assert held.history[-1].keys() == streamed.history[-1].keys()
    assert sorted(Path(one.name).name for one in streamed.skipped) == ["cut.png"]


def test_balanced_sampling_finds_a_rare_class(digits: Source, quick: Quick, tmp_path: Path) -> None:
    rare = np.concatenate(
        [np.flatnonzero(digits.labels == 1), np.flatnonzero(digits.labels == 7)[:4]]
    )
    source = digits.subset(rare)
    result = fit(source, quick(balanced=True), tmp_path / "m", progress=False)
    assert result.history[-1]["epoch"] == 3


def test_several_labels_an_image(digits: Source, quick: Quick, tmp_path: Path) -> None:
    labels = digits.labels
    matrix = np.stack([labels % 2 == 0, labels % 2 == 1, labels >= 5], axis=1)
    source = dataclasses.replace(
        digits,
        classes=("even", "odd", "large"),
        label_matrix=matrix,
        labels=matrix.argmax(axis=1).astype(np.int64),
    )
    result = fit(source, quick(epochs=12), tmp_path / "m", progress=False)
    _, saved = load_model(tmp_path / "m")
    assert saved.multi_label
    assert result.history[-1]["accuracy"] > 0.85
    assert result.history[-1]["loss"] < 0.45  # chance is 0.69


def test_the_old_model_stays_until_the_new_one_is_whole(
    digits: Source, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    first = fit(digits, quick(epochs=1), out, progress=False)
    with pytest.raises(ModelError, match=r"holds a model; .*--overwrite"):
        fit(digits, quick(epochs=1), out, progress=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hashlens.models.checkpoint.replace_file", full)
    with pytest.raises(ModelError, match="no space left"):
        fit(digits, quick(epochs=1, seed=5), out, overwrite=True, progress=False)
    assert load_model(out)[1].fingerprint == first.fingerprint


def test_a_class_of_one_image_trains_and_one_without_images_is_dropped(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("alone", "broken"):
        (folder / name).mkdir()
    shutil.copy(folder / "dark" / "0.png", folder / "alone" / "0.png")
    for i in range(2):
        (folder / "broken" / f"{i}.png").write_bytes(b"no image")
    result = _train_folder(folder, tmp_path / "m")
    told = " ".join(result.warnings)
    assert "1 classes are dropped, none of their images could be read: broken" in told
    assert "have no label" not in told
    assert "1 classes have one image each, which is in training and not in validation: alone" in (
        told
    )
    _, saved = load_model(tmp_path / "m")
    assert saved.classes == ("alone", "dark", "light")
    assert saved.training["images per class"] == {"alone": 1, "dark": 10, "light": 10}
    for path in (folder / "alone", folder / "light"):
        for file in path.iterdir():
            file.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"at least 2 classes, got 1 \('dark'\)"):
        _train_folder(folder, tmp_path / "n")


def test_a_few_images_of_each_class_are_enough(folder: Path, tmp_path: Path) -> None:
    """As few as ``hashlens look`` takes for a class."""
    for path in folder.rglob("[5-9].png"):
        path.unlink()
    result = _train_folder(folder, tmp_path / "m", validation=None)
    assert (result.training_images, result.validation_images) == (8, 2)


def test_more_classes_than_codes_are_told(digits: Source, quick: Quick, tmp_path: Path) -> None:
    many = dataclasses.replace(
        digits, classes=tuple(map(str, range(300))), labels=np.arange(len(digits)) % 300
    )
    result = fit(many, quick(epochs=1, bits=8), tmp_path / "m", progress=False)
    assert any("300 classes share the 256 codes of 8 bits" in note for note in result.warnings)


def test_sources_that_cannot_be_trained_on(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "light")
    with pytest.raises(SourceError, match="at least 2 classes"):
        _train_folder(folder, tmp_path / "m")
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"no image")
    (folder / "light").mkdir()
    shutil.copy(folder / "dark" / "0.png", folder / "light" / "0.png")
    shutil.copy(folder / "dark" / "0.png", folder / "light" / "1.png")
    with pytest.raises(SourceError, match="none of 12 images tried can be read"):
        _train_folder(folder, tmp_path / "m")


def test_a_missing_weights_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file at"):
        _train_folder(
            folder,
            tmp_path / "m",
            backbone="timm:mobilenetv2_100",
            weights=str(tmp_path / "no.pth"),
        )


def test_a_frozen_backbone_gets_a_feature_layer_that_learns(
    folder: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    values = {**frozen, "epochs": 2}
    _train_folder(folder, tmp_path / "m", **values)
    net, saved = load_model(tmp_path / "m")
    assert saved.feature_dim == net.feature_dim == 256
    assert saved.training["configuration"]["feature_layer"] == 256
    with torch.inference_mode():
        features = net(torch.rand(3, 3, 16, 16)).features
    assert features.shape == (3, 256)
    _train_folder(folder, tmp_path / "n", **values, feature_layer=0)
    net, saved = load_model(tmp_path / "n")
    assert net.feature_layer is None
    assert saved.feature_dim == 96  # the backbone's own
    _train_folder(folder, tmp_path / "o", backbone="resnet9?width=4")
    assert load_model(tmp_path / "o")[0].feature_layer is None


def _interrupted(
    folder: Path, out: Path, after: int, patch: pytest.MonkeyPatch, **values: object
) -> None:
    """Train so many epochs, then press Ctrl-C."""
    end_epoch = ShowProgress.on_train_epoch_end

    def interrupt(self: ShowProgress, trainer: Any, module: Any) -> None:
        end_epoch(self, trainer, module)
        if trainer.current_epoch == after - 1:
            raise KeyboardInterrupt

    with patch.context() as patched:
        patched.setattr(ShowProgress, "on_train_epoch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _train_folder(folder, out, **values)


def test_dropout_is_drawn_alike_after_an_interruption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: dict[str, Any]
) -> None:
    values = {**frozen, "epochs": 3}
    whole = _train_folder(folder, tmp_path / "whole", **values)
    _interrupted(folder, tmp_path / "again", 2, monkeypatch, **values)
    resumed = _train_folder(folder, tmp_path / "again", resume=True, **values)
    assert resumed.fingerprint == whole.fingerprint


def test_a_resumed_run_is_warned_as_an_unbroken_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"backbone": "resnet9?width=4", "epochs": 5, "learning_rate": 0.0}
    whole = _train_folder(folder, tmp_path / "whole", **values)
    assert any("after 3 epoch(s)" in warning for warning in whole.warnings)
    _interrupted(folder, tmp_path / "again", 4, monkeypatch, **values)
    resumed = _train_folder(folder, tmp_path / "again", resume=True, **values)
    assert resumed.warnings == whole.warnings


def test_a_source_in_another_order_is_not_resumed(
    digits: Source, quick: Quick, tmp_path: Path
) -> None:
    open_run(tmp_path / "m", digits, quick(), resume=False, overwrite=False)
    assert open_run(tmp_path / "m", digits, quick(), resume=True, overwrite=False) is None
    other = digits.subset(np.arange(len(digits))[::-1])
    with pytest.raises(ModelError, match="other images"):
        open_run(tmp_path / "m", other, quick(), resume=True, overwrite=False)


def test_the_average_follows_every_step(digits: Source, quick: Quick, tmp_path: Path) -> None:
    steps = {"epochs": 1, "batch_size": 64, "accumulate": 2}  # 5 batches: the last is a step alone
    plain = fit(digits, quick(**steps, average=0.0), tmp_path / "plain", progress=False)
    # an average that forgets at once is the weights themselves
    averaged = fit(digits, quick(**steps, average=1e-9), tmp_path / "average", progress=False)
    for name, value in plain.history[0].items():
        assert averaged.history[0][name] == pytest.approx(value, abs=1e-5)


def test_kept_features_are_of_the_same_images(
    folder: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    kept = tmp_path / "features.safetensors"
    _train_folder(folder, tmp_path / "a", features=kept, **frozen)
    (folder / "dark" / "0.png").rename(folder / "light" / "10.png")  # a label put right
    moved = _train_folder(folder, tmp_path / "b", features=kept, **frozen)
    again = _train_folder(folder, tmp_path / "c", **frozen)
    assert moved.fingerprint == again.fingerprint


def test_the_latent_layer_starts_as_the_recipe_says(folder: Path, tmp_path: Path) -> None:
    values = {"latent_std": 0.005, "latent_bias": 1.0, "latent_normalisation": False}
    _train_folder(folder, tmp_path / "m", **values, bits=64, learning_rate=0.0, average=0.0)
    latent = load_model(tmp_path / "m")[0].latent
    assert float(latent.weight.detach().std()) == pytest.approx(0.005, rel=0.1)
    assert bool((latent.bias == 1).all())


@pytest.mark.parametrize("backbone", ["resnet9?width=4", "smallcnn"])
def test_training_on_from_a_model_of_ones_own(tmp_path: Path, backbone: str) -> None:
    """A new class comes in between; what both models know is taken over, by name."""
    for name in ("a", "b", "c"):
        write_class_folder(tmp_path / name, per_class=12)
    folder = tmp_path / "a"
    first = _train_folder(folder, tmp_path / "m", epochs=3, backbone=backbone)
    classes = sorted(path.name for path in folder.iterdir())
    (folder / classes[0]).rename(folder / "zebra")
    shutil.copytree(tmp_path / "b" / classes[1], folder / "newcomer")
    source = open_source(str(folder))
    config, reasons = configure("auto", {"start": str(tmp_path / "m"), "epochs": 2}, source)
    assert (config.backbone, config.bits) == (first.config.backbone, first.config.bits)
    assert config.learning_rate == first.config.learning_rate  # as there are new classes
    assert "2 new classes" in reasons[0]
    again = configure("auto", {"start": str(tmp_path / "m")}, open_source(str(tmp_path / "c")))[0]
    assert again.learning_rate == pytest.approx(first.config.learning_rate / 5)
    net, described = load_model(tmp_path / "m")
    own, _ = load_model(tmp_path / "m")
    for layer in (own.latent, own.classifier, *own.backbone.modules()):
        for value in layer.parameters(recurse=False):
            torch.nn.init.normal_(value)
    take_over(own, net, described.classes, [described.classes[2], "zebra", described.classes[1]])
    assert torch.equal(own.latent.weight, net.latent.weight)
    assert torch.equal(own.classifier.weight[0], net.classifier.weight[2])
    assert torch.equal(own.classifier.bias[2], net.classifier.bias[1])
    assert not torch.equal(own.classifier.weight[1], net.classifier.weight[0])
    fit(source, config, tmp_path / "on", progress=False)
    trained, saved = load_model(tmp_path / "on")
    assert saved.classes == source.classes
    assert saved.start_origin == f"model {first.fingerprint[:12]}"
    pairs = zip(trained.backbone.parameters(), net.backbone.parameters(), strict=True)
    assert all(torch.nn.functional.cosine_similarity(x.ravel(), y.ravel(), 0) > 0.5
               for x, y in pairs if x.ndim > 1)  # fmt: skip


def test_training_on_keeps_the_structure(digits: Source, quick: Quick, tmp_path: Path) -> None:
    fit(digits, quick(epochs=1), tmp_path / "m", progress=False)
    for values in ({"bits": 24}, {"backbone": "resnet9"}, {"size": 32}):
        with pytest.raises(InvalidInputError, match="and stays so; leave it out"):
            configure("auto", {"start": str(tmp_path / "m"), **values}, digits)
