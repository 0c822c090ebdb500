from dataclasses import replace
from pathlib import Path

import pytest
from estimates import labelled_faces
from models import tiny_model

from agewatch.cli import display
from agewatch.labelled.evaluate import Evaluation, summarise
from agewatch.release.gate import Compared, Decision, Record
from agewatch.release.store import Entry

ODD = ("[unknown]", "[/other]", "[red]")


def test_labels_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = summarise(labelled_faces().assign(status="ok"), tiny_model(tmp_path / "model"), held_out=True)
    parts = [replace(whole.slices[0], dimension="[/sex]", value=name) for name in ODD]
    found: Evaluation = replace(whole, slices=parts, worst=parts[1], thin=parts[:1])
    display.evaluation(found)
    told = capsys.readouterr().out
    assert "Worst slice: [/sex] [/other]" in told
    assert "coverage for [unknown]" in told
    for name in ODD:
        assert f"[/sex]  {name}" in told


def test_decisions_and_models_are_printed_as_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    parts = tuple(Compared("[/sex]", name, 10, 5.0, 4.0) for name in ODD)
    decided = Decision(True, "[/reason]", 30, 5.0, 4.0, -2.0, 0.0, 1.0, 1.0, parts)
    record = Record("[red]champion", "[/challenger]", True, {}, "2026-01-02T03:04:05Z", decided)
    display.decision(record)
    told = capsys.readouterr().out
    assert "[/challenger] against [red]champion: 30 pictures" in told
    assert "[/reason]" in told
    for name in ODD:
        assert f"[/sex]  {name}" in told
    display.models([Entry(Path("[/store]/x.mar"), "[red]m-1", 10, True)], {"[red]m-1": record})
    told = capsys.readouterr().out
    for text in ("[/store]/x.mar", "[red]m-1", "passed against [red]champion"):
        assert text in told
