"""Scoring by a server that changes its model, and one whose model is not the one that was asked for."""

from pathlib import Path

import pytest
from pictures import encoded
from PIL import Image
from scripted import ANSWER, Script

from agewatch.errors import ServeError, UsageError
from agewatch.remote import Server
from agewatch.scoring import predictions
from agewatch.scoring.score import Summary, score_archive
from agewatch.scoring.scorer import Execution

FOUND = ANSWER | {"width": 8, "height": 8, "captured_at": None, "camera": None, "rendition": None}
NEW = "agewatch-2@ba9876543210"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(encoded(Image.new("RGB", (8, 8), (number, 0, 0))))
    return folder


def scored(archive: Path, server: Server, model: Path | None = None) -> Summary:
    how = Execution(archive / "cache", 1, server=server)
    return score_archive(archive, model_path=model, table=archive.parent / "table", how=how)


def test_a_model_that_changes_in_the_middle_ends_the_run_and_the_next_one_scores_with_the_new(
    archive: Path, script: tuple[Script, Server]
) -> None:
    plan, server = script
    for number in range(40):
        model = ANSWER["model"] if number < 25 else NEW
        plan.answers[(archive / f"{number:02}.png").read_bytes()] = [(200, FOUND | {"model": model})]
    with pytest.raises(ServeError, match=rf"model was {ANSWER['model']} and is {NEW} now"):
        scored(archive, server)
    rows = predictions.read(archive.parent / "table").to_pylist()
    assert 0 < len(rows) <= 25, "whole shards of the first model are kept"
    assert {row["model"] for row in rows} == {ANSWER["model"]}
    plan.answers = {}
    plan.usual = FOUND | {"model": NEW}
    summary = scored(archive, server)
    assert (summary.model, summary.scored, summary.no_face) == (NEW, 40, 40)
    assert scored(archive, server).scored == 0, "a second run asks for nothing"


def test_a_model_that_is_named_must_be_the_servers(
    archive: Path, model_folder: Path, script: tuple[Script, Server]
) -> None:
    with pytest.raises(UsageError, match=f"The server's model is {ANSWER['model']}, not agewatch-0@"):
        scored(archive, script[1], model_folder)
    assert not (archive.parent / "table").exists()
