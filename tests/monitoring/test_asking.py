"""The page that asks for ages is one a person can use: drawn fairly, offline, answered, saved, and added."""

import csv
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from browser import open_page
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch import api
from agewatch.errors import TableError
from agewatch.estimator.model import AgeModel
from agewatch.labelled import late
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key
from monitoring.asking import _start, ask

ODD = "<script>alert(1)<script>\"'&, ünd\\.png"
ANSWER = """
const inputs = [...document.querySelectorAll("[type=number]")];
inputs.forEach((input, place) => { input.value = 20 + place; });
const unknown = document.querySelectorAll("[type=checkbox]")[4];
unknown.click();
document.querySelector("#save").click();
"""


@pytest.fixture(scope="module")
def scored(model_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Key]:
    """An archive of 24 small pictures, each as one face, one with a name that is hard to bear; its table and key."""
    root = tmp_path_factory.mktemp("pictures") / "town"
    (root / "<b>").mkdir(parents=True)
    face = Image.open(ASTRONAUT).convert("RGB").crop((130, 20, 330, 240))
    for number in range(24):
        name = ODD if number == 0 else f"{number}.jpg"
        turned = face.rotate(number).resize((100 + number, 110))
        (root / "<b>" / name).write_bytes(encoded(turned, "JPEG" if number else "PNG"))
    table = root.parent / "table"
    api.score_archive(root, model=model_folder, predictions=table, faces="crop", workers=1)
    return root, table, Key("town", AgeModel.load(model_folder).id, "crop")


def test_twenty_faces_are_answered_in_a_browser_saved_and_added(
    scored: tuple[Path, Path, Key], model_folder: Path, home: Path, tmp_path: Path
) -> None:
    _, table, key = scored
    asked = ask(table, key, 20, tmp_path / "page")
    assert (asked.n, asked.of, asked.lost) == (20, 24, 0)
    assert asked.page.stat().st_mode & 0o777 == 0o600
    saved = tmp_path / "labels.csv"
    page = open_page(
        asked.page, tmp_path / "profile", tmp_path / "page.png", act=ANSWER, saved=saved,
        drawn="document.querySelector('#count').textContent === '0 of 20 answered'"
        " && [...document.images].length === 40 && [...document.images].every((one) => one.naturalWidth > 0)",
    )  # fmt: skip
    assert page.problems == []
    assert [request for request in page.requests if not request.startswith(("file:", "data:", "blob:"))] == []
    with saved.open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 19
    assert {answer["asked"] for answer in answers} == {str(20 / 24)}
    added = subprocess.run(
        [sys.executable, "-m", "agewatch", "labels", "add", "--archive", "town", "--model", model_folder,
         "--predictions", table, "--json", saved],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(added.stdout) == {
        "archive": "town", "added": 19, "unchanged": 0, "refused": {}, "told": [], "labels": 19
    }  # fmt: skip
    labels = late.read(table, "town")
    assert sorted(labels["age"]) == [age for age in range(20, 40) if age != 24]
    assert set(labels["origin"]) == {"asked"}
    again = ask(table, key, 20, tmp_path / "again")
    assert (again.n, again.of) == (5, 5)


def test_the_same_rows_give_the_same_page_names_are_harmless_and_lost_pictures_are_replaced(
    scored: tuple[Path, Path, Key], tmp_path: Path
) -> None:
    root, table, key = scored
    (folder_of(table, "town") / "labels.parquet").unlink(missing_ok=True)  # of the other test
    first, second = (ask(table, key, 4, tmp_path / name).page.read_text() for name in ("one", "two"))
    assert first == second
    whole = ask(table, key, 24, tmp_path / "whole").page.read_text()
    assert "<script>alert" not in whole
    assert "&lt;script&gt;alert(1)" in whole
    gone = sorted(path for path in (root / "<b>").iterdir() if path.suffix == ".jpg")
    for path in gone[:-2]:
        path.unlink()
    gone[-1].write_bytes(b"another picture")
    left = ask(table, key, 2, tmp_path / "left")
    assert (left.n, left.of) == (2, 24)
    (root / "<b>" / ODD).unlink()
    gone[-2].unlink()
    with pytest.raises(TableError, match="are the pictures there"):
        ask(table, key, 2, tmp_path / "none")


def test_faces_are_drawn_from_the_newest_week_or_more_where_these_are_few() -> None:
    nights = np.array([date(2026, 1, day) for day in (1, 1, 10, 12, 14, 14)], object)
    assert _start(nights, 2) == date(2026, 1, 8)
    assert _start(nights, 5) == date(2026, 1, 1)
    assert _start(nights, 50) == date(2026, 1, 1)
