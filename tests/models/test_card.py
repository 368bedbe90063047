"""The model card says what is known, and nothing that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hashlens.models.checkpoint import read_config
from hashlens.models.description import model_card


def test_states_data_figures_and_licence(model_dir: Path) -> None:
    config = replace(
        read_config(model_dir)[0],
        start_origin="timm x.y",
        start_licence="apache-2.0",
        radius=4,
        mode="acs",
        training={
            "recipe": "small",
            "epochs": 5,
            "data": {"training images": 900, "images by class": {"cat": 300, "dog": 600}},
            "validation": {"error": 0.012344},
        },
    )
    card = model_card(config)
    assert card.startswith(
        "---\nlibrary_name: hashlens\ntags: [image-retrieval, learning-to-hash]\n"
        "pipeline_tag: image-feature-extraction\nlicense: apache-2.0\nbase_model: timm/x.y\n"
        "metrics: [mean_average_precision, accuracy]\n---\n"
    )
    other = replace(config, start_licence="not stated", training={"source": "hub:me/shoes#train"})
    assert "license:" not in model_card(other)
    assert "\ndatasets: [me/shoes]\n---\n" in model_card(other)
    for row in (
        "| bits | 20 |",
        "| backbone | resnet9?width=2 |",
        "| features | 16, as the network makes them |",
        "| proposed mode | acs |",
        "| proposed radius | 4 |",
        f"| fingerprint | {config.fingerprint} |",
        "| origin | timm x.y |",
        "| licence | apache-2.0 |",
        "cat, dog, eel",
        "## Data",
        "| training images | 900 |",
        "| images by class | cat: 300, dog: 600 |",
        "| error | 0.01234 |",
        "| epochs | 5 |",
    ):
        assert row in card


def test_an_untrained_model_has_no_section_of_training(model_dir: Path) -> None:
    card = model_card(read_config(model_dir)[0])
    assert "## Training" not in card
    assert "| proposed radius | not measured |" in card


def test_names_cannot_break_the_page(model_dir: Path) -> None:
    config = replace(
        read_config(model_dir)[0],
        classes=("a|b\n# c", "<script>"),
        training={"data": {"source": "x | y\nz"}},
    )
    card = model_card(config)
    assert "a\\|b # c, \\<script>" in card
    assert "| source | x \\| y z |" in card


def test_many_classes_are_counted(model_dir: Path) -> None:
    config = replace(read_config(model_dir)[0], classes=tuple(f"class{i}" for i in range(120)))
    card = model_card(config)
    assert "## Classes (120)" in card
    assert "and 70 more" in card
    assert "class50" not in card
