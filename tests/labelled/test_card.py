"""The model card says what was measured, and only what is known."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from estimates import labelled_faces
from models import tiny_model

from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Svr
from agewatch.labelled import card
from agewatch.labelled.evaluate import Evaluation, summarise
from agewatch.labelled.metrics import measure, worst_slice
from agewatch.labelled.tables import as_records

TRAINING = {
    "recipe": {"epochs": 2, "kwargs": {"drop_rate": 0.2}, "mean": [0.5, 0.4, 0.3], "serve": None},
    "start": "face.safetensors",
    "sources": {"crops": 1500, "portraits": 500},
    "dropped": {"duplicate": 7},
    "splits": {"train": 1500, "test": 200},
    "curves": [[{"epoch": 1, "size": 64, "loss": 4.567, "validation_mae": 5.432, "seconds": 12.3}]],
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "store" / "model")


@pytest.fixture
def trained(bare: Path) -> Path:
    """A model of two networks whose model.json says all that a training run writes."""
    model = AgeModel.load(bare)
    faces = labelled_faces()
    row = measure("CNN", faces["predicted"].to_numpy(), faces["age"].to_numpy())
    first = model.spec.members[0]
    spec = replace(
        model.spec,
        members=(replace(first, weight=1.5, mirrored=True), replace(first, weight=0.5, svr=Svr(0.25, 6.0))),
        git_commit="abc123",
        metrics={
            "training": TRAINING,
            "held_out": {"all": as_records([replace(row, worst=worst_slice(faces), cost_ms=1.5, megabytes=0.9)])},
            "served": "ensemble",
            "bf16": {"mae_change_years": 0.012, "mean_difference_years": 0.27, "max_difference_years": 4.4},
        },
    )
    AgeModel(spec, model.weights).save(bare)
    return bare


def evaluation(model: Path, *, held_out: bool = True) -> Evaluation:
    return summarise(labelled_faces().assign(status="ok"), model, held_out=held_out)


def written(model: Path, found: Evaluation, folder: Path) -> str:
    card.write(folder, model, found)
    return (folder / "MODEL_CARD.md").read_text()


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_trained_model_has_every_section(trained: Path, tmp_path: Path) -> None:
    (trained.parent / "DATA.md").write_text("## Data and terms\n\nOnly for research.\n")
    text = written(trained, evaluation(trained), tmp_path / "card")
    assert headings(text) == [
        "What it must not be used for", "Architecture", "Training procedure", "Data and terms", "Candidates",
        "Evaluation", "Intervals", "bf16", "Limits",
    ]  # fmt: skip
    for said in (
        AgeModel.load(trained).id,
        "\n- Network: timm `test_efficientnet`, with a softmax over the ages, averaged with its answer",
        "averaged with its answer to the mirror image; 75% of the whole",
        "support vector regression on its embedding that gives 25% of its part; 25% of the whole",
        "agewatch train crops portraits --recipe recipe.toml --start face.safetensors",
        "1,500 crops, 500 portraits",
        "7 duplicate",
        "kwargs = { drop_rate = 0.2 }",
        "| 1 | 64 | 4.57 | 5.43 | 12 |",
        "`abc123`",
        "Served: ensemble.",
        "Only for research.",
        "MAE changes by +0.0120 years",
    ):
        assert said in text, said
    assert "serve =" not in text


def test_what_is_not_known_is_left_out(bare: Path, tmp_path: Path) -> None:
    text = written(bare, evaluation(bare), tmp_path / "card")
    assert headings(text) == ["What it must not be used for", "Architecture", "Evaluation", "Intervals", "Limits"]
    assert "of the whole" not in text  # it has one network
    assert "None" not in text
    assert "nan" not in text


def test_figures_are_those_of_the_evaluation(bare: Path, tmp_path: Path) -> None:
    found = evaluation(bare)
    text = written(bare, found, tmp_path / "card")
    for part in found.slices:
        assert f"| {part.dimension} | {part.value} | {part.n:,} | {part.mae:.2f} |" in text
    for band in found.bands:
        assert f"| {band.band} | {band.n_calibration:,} | {band.n:,} | {band.coverage:.1%} |" in text
    group = next(part for part in found.slices if part.value == "black, under 13")
    assert f"black, under 13: MAE 9.00 (95 % CI 9.00 to 9.00), bias +9.00, coverage 0.0%, on {group.n} faces" in text
    assert f"hold {found.coverage:.1%} of the true ages; mean width {found.width:.1f} years" in text
    assert "The model learnt from none of these files." in text
    assert "may have learnt from some" in written(bare, replace(found, held_out=False), tmp_path / "card")


def test_a_group_that_was_not_there_is_said_to_be_unmeasured(bare: Path, tmp_path: Path) -> None:
    faces = labelled_faces().assign(status="ok", ethnicity=None)
    text = written(bare, summarise(faces, bare, held_out=True), tmp_path / "card")
    assert "no faces labelled black, under 13: for them nothing was measured" in text


def test_the_figure_draws_every_decade_of_every_source(bare: Path, tmp_path: Path) -> None:
    found = evaluation(bare)
    text = written(bare, found, tmp_path / "card")
    assert "(model_card.svg)" in text
    drawing = ElementTree.fromstring((tmp_path / "card" / "model_card.svg").read_text())
    kind = "{http://www.w3.org/2000/svg}"
    large = [part for parts in found.decades.values() for part in parts if part.n >= 30]
    assert len(found.decades) == 2
    assert len(large) >= 16
    dots = [dot for dot in drawing.iter(f"{kind}circle") if float(dot.get("cy", "0")) <= 331]  # those below: the legend
    assert len(dots) == len(large) + 9  # and nine of the coverage
    for dot in dots:
        assert 60 < float(dot.get("cx", "0")) < 980
        assert float(dot.get("cy", "0")) > 55
    texts = [text.text for text in drawing.iter(f"{kind}text")]
    assert {"crops", "portraits", "0-9", "80+", "100%"} <= set(texts)
    assert not re.search(r"href|script|https?://(?!www\.w3\.org/2000/svg)", ElementTree.tostring(drawing, "unicode"))
