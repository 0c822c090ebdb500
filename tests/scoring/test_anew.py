"""After a promotion an archive is scored anew: the baseline at once, the rest within minutes a night, newest first."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake
from models import tiny_model
from pictures import encoded
from PIL import Image

from agewatch.errors import UsageError
from agewatch.estimator.model import AgeModel
from agewatch.scoring import anew, baseline, canaries, predictions
from agewatch.scoring.anew import Left
from agewatch.scoring.baseline import Baseline
from agewatch.scoring.pending import Again
from agewatch.scoring.predictions import Key
from agewatch.scoring.score import Summary, score_archive
from agewatch.scoring.scorer import Execution

NIGHTS = {date(2026, 1, 1): 40, date(2026, 1, 2): 30, date(2026, 1, 3): 20}
A_MOMENT = 1e-9
"""Minutes that are over when the first shard is done."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive whose files arrived in three nights, of which the first makes the baseline, and two models."""
    monkeypatch.setattr(baseline, "FULL", 30)
    monkeypatch.setattr(canaries, "COUNT", 5)
    for night, files in NIGHTS.items():
        for number in range(files):
            picture(tmp_path, f"{night}/{number}.png", night.day * 100 + number)
    tiny_model(tmp_path / "old")
    tiny_model(tmp_path / "new", seed=5)
    score(tmp_path, "old")
    rows = predictions.read(tmp_path / "table")
    nights = [datetime.fromisoformat(path[:10]).replace(tzinfo=UTC) for path in rows["path"].to_pylist()]
    place = rows.schema.get_field_index("arrived_at")
    rows = rows.set_column(place, rows.schema.field("arrived_at"), pa.array(nights, rows.schema.field(place).type))
    write_deltalake(tmp_path / "table", rows, mode="overwrite")
    return tmp_path


def picture(home: Path, name: str, seed: int) -> None:
    place = home / "town" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    place.write_bytes(encoded(Image.fromarray(noise), "png"))


def score(home: Path, model: str, minutes: float | None = None, again: Again = "nothing") -> Summary:
    return score_archive(
        home / "town", model_path=home / model, table=home / "table", how=Execution(home / "cache", workers=1),
        mode="crop", anew_minutes=minutes, again=again,
    )  # fmt: skip


def key(home: Path, model: str = "new") -> Key:
    return Key("town", AgeModel.load(home / model).id, "crop")


def arrivals(home: Path, model: str) -> dict[str, datetime]:
    """When each file arrived, by the rows of a model."""
    rows = predictions.read(home / "table", key(home, model).where, ["path", "arrived_at"])
    return dict(zip(rows["path"].to_pylist(), rows["arrived_at"].to_pylist(), strict=True))


def test_the_nights_own_files_and_the_baseline_come_first_and_the_rest_night_by_night(home: Path) -> None:
    before = arrivals(home, "old")
    picture(home, "tonight.png", 999)
    picture(home, "2026-01-02/7.png", 998)  # changed since: it is tonight's too
    (home / "town" / "2026-01-03" / "0.png").unlink()

    first = score(home, "new", minutes=0)
    assert (first.found, first.scored, first.skipped, first.left_to_rescore) == (90, 42, 48, 48)
    assert (first.scored_anew, first.refused_now) == (40, 0)
    assert (first.faces, first.disappeared, first.exit_code) == (90, 0, 0)  # those left are told by their old rows
    done = arrivals(home, "new")
    assert {path.partition("/")[0] for path in done} == {"2026-01-01", "tonight.png", "2026-01-02"}
    assert all(done[path] == before[path] for path in done if path.startswith("2026-01-01"))
    left = {date(2026, 1, 2): 29, date(2026, 1, 3): 19}
    assert anew.left(home / "table", key(home)) == Left(left, key(home, "old").model)
    assert canaries.read(home / "table", "town").canaries[f"{key(home).model} crop"]

    second = score(home, "new", minutes=A_MOMENT)
    assert (second.scored, second.left_to_rescore) == (16, 32)
    fresh = arrivals(home, "new").keys() - done.keys()
    assert {path[:10] for path in fresh} == {"2026-01-03"}  # newest first, a whole shard

    third = score(home, "new", minutes=60)
    assert (third.scored, third.left_to_rescore) == (32, 0)
    rows = predictions.read(home / "table", key(home).where)
    assert len(rows) == len(pc.unique(rows["path"])) == 90
    after = arrivals(home, "new")
    assert {path for path in after if after[path] != before.get(path)} == {"tonight.png", "2026-01-02/7.png"}
    assert anew.standing(home / "table", key(home).model) == {}
    assert score(home, "new", minutes=60).scored == 0


def test_without_minutes_all_is_scored_anew_at_once_and_with_rescore_there_are_none(home: Path) -> None:
    with pytest.raises(UsageError, match="give it no minutes"):
        score(home, "new", minutes=5, again="all")
    summary = score(home, "new")
    assert (summary.scored, summary.left_to_rescore) == (90, 0)


def test_the_baseline_stays_where_it_was_though_files_of_it_are_gone(home: Path) -> None:
    for number in range(15):
        (home / "town" / "2026-01-01" / f"{number}.png").unlink()
    score(home, "new", minutes=0)
    assert len(arrivals(home, "new")) == 25  # fewer than fill a baseline
    first = date(2026, 1, 1)
    assert baseline.of_archive(home / "table", "town", "crop") == Baseline(first, first, is_accepted=False)
    assert anew.standing(home / "table", key(home).model)["town"].files == 50
