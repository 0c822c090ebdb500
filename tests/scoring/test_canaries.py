"""The same pictures are estimated again by each run, beside the table: what moved is the instrument, or a file."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from models import tiny_model
from pictures import encoded
from PIL import Image

from agewatch.scoring import baseline, beside, canaries, predictions
from agewatch.scoring.canaries import Canary, CanaryRun
from agewatch.scoring.score import Limits, Summary, score_archive
from agewatch.scoring.scorer import Execution

FILES = 40


@pytest.fixture(autouse=True)
def small_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "FULL", 30)
    monkeypatch.setattr(canaries, "COUNT", 25)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An archive of plain pictures, each of another grey, and a model."""
    (tmp_path / "town").mkdir()
    for number in range(FILES):
        picture(tmp_path, f"{number}.png", number)
    tiny_model(tmp_path / "model")
    return tmp_path


def picture(home: Path, name: str, grey: int) -> None:
    (home / "town" / name).write_bytes(encoded(Image.new("RGB", (32, 32), (5 * grey, 90, 200 - grey)), "png"))


def score(home: Path) -> Summary:
    return score_archive(
        home / "town", model_path=home / "model", table=home / "table", how=Execution(home / "cache", workers=2),
        mode="crop", limits=Limits(gone=1),
    )  # fmt: skip


def on_record(home: Path) -> tuple[list[Canary], list[CanaryRun]]:
    record = canaries.read(home / "table", "town")
    return [canary for some in record.canaries.values() for canary in some], record.runs


def test_they_are_drawn_once_the_baseline_is_full_and_stand_for_all_its_ages(home: Path) -> None:
    score(home)
    drawn, runs = on_record(home)
    assert (len(drawn), runs) == (25, [])  # nothing to compare with yet
    rows = {row["path"]: row for row in predictions.read(home / "table").to_pylist()}
    assert all(rows[canary.path]["age"] == canary.age for canary in drawn)
    ages = sorted(row["age"] for row in rows.values())
    fifths = {min(4, 5 * ages.index(canary.age) // FILES) for canary in drawn}
    assert fifths == {0, 1, 2, 3, 4}
    file = beside.folder_of(home / "table", "town") / "canaries.json"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_calm_runs_see_no_difference_and_write_no_row(home: Path) -> None:
    score(home)
    version = DeltaTable(home / "table").version()
    first, _ = on_record(home)
    assert score(home).scored == 0
    again, runs = on_record(home)
    assert [canary.path for canary in again] == [canary.path for canary in first]
    (run,) = runs
    assert (run.n, run.lost, run.replaced) == (25, 0, 0)
    assert run.largest_years < 0.001
    assert DeltaTable(home / "table").version() == version


def test_another_network_under_the_same_name_is_seen_at_once(home: Path) -> None:
    score(home)
    tiny_model(home / "model", seed=1)
    table = home / "table"
    score_archive(
        home / "town", model_path=home / "model", table=home / "other", how=Execution(home / "elsewhere"), mode="crop"
    )
    ages = {row["path"]: row["age"] for row in predictions.read(home / "other").to_pylist()}
    expected = [ages[canary.path] - canary.age for canary in on_record(home)[0]]
    tiny_model(home / "model")
    swapped = zip(networks(home / "cache"), networks(home / "elsewhere"), strict=True)
    for ours, others in swapped:
        shutil.copyfile(others, ours)
    assert score(home).scored == 0
    run = on_record(home)[1][-1]
    assert run.moved_years == pytest.approx(np.mean(expected), abs=0.02)
    assert run.spread_years == pytest.approx(np.abs(expected).mean(), abs=0.02)
    assert run.spread_years > 0.1
    assert {row["path"]: row["age"] for row in predictions.read(table).to_pylist()} != ages


def networks(cache: Path) -> list[Path]:
    return sorted((path for path in cache.rglob("*") if path.is_file()), key=lambda path: path.suffix)


def test_files_that_are_gone_or_were_changed_are_replaced(home: Path) -> None:
    score(home)
    first, _ = on_record(home)
    (home / "town" / first[0].path).unlink()
    time.sleep(0.01)
    picture(home, first[1].path, 49)
    score(home)
    now, runs = on_record(home)
    assert (runs[-1].n, runs[-1].replaced) == (23, 2)
    hashes = {canary.content_hash for canary in now}
    assert len(now) == len(hashes) == 25
    assert not {first[0].content_hash, first[1].content_hash} & hashes


def test_below_the_baseline_and_of_a_lost_archive_nothing_is_looked_at(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "FULL", 1000)
    score(home)
    assert on_record(home) == ([], [])
    monkeypatch.setattr(baseline, "FULL", 30)
    score(home)
    for path in (home / "town").iterdir():
        path.unlink()
    assert score(home).exit_code == 6
    assert len(on_record(home)[0]) == 25


def test_a_record_that_is_damaged_is_begun_anew(home: Path) -> None:
    score(home)
    file = beside.folder_of(home / "table", "town") / "canaries.json"
    file.write_text(json.dumps({"canaries": 5}))
    score(home)
    assert len(on_record(home)[0]) == 25
