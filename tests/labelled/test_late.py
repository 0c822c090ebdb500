"""Labels that come late find their faces by content, doubts are counted and said, and nothing of a birth stays."""

import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import row, writer

from agewatch.errors import LabelError, UsageError
from agewatch.labelled import late
from agewatch.scoring import archives
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key

KEY = Key("a", "m-1@0", "detect")
TAKEN = datetime(2020, 6, 30, tzinfo=UTC)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One picture of one face, its copy, one of two faces, one taken on a known day, one without a face."""
    held = writer(tmp_path, tmp_path)
    held.write([
        row("one.jpg", content_hash="1" * 64), row("x/copy.jpg", content_hash="1" * 64),
        row("two.jpg", content_hash="2" * 64), row("two.jpg", face=1, content_hash="2" * 64),
        row("dated.jpg", content_hash="3" * 64, captured_at=TAKEN), row("none.jpg", face=None, age=None),
        row("back\\\\slash.jpg", content_hash="4" * 64),
    ])  # fmt: skip
    return tmp_path / "table"


def add(table: Path, text: str) -> late.Added:
    file = table.parent / "labels.csv"
    file.write_text(text)
    return late.add(table, KEY, file)


def test_labels_find_their_faces_and_each_doubt_is_counted_and_said(table: Path) -> None:
    added = add(
        table,
        "path,age,face,asked\none.jpg,30,,\ntwo.jpg,40,1,0.25\ntwo.jpg,41,,\ntwo.jpg,41,2,\nnone.jpg,9,,\n"
        "gone.jpg,9,,\nback\\slash.jpg,5,0,\ndated.jpg,nan,,\ndated.jpg,130,,\ndated.jpg,-1,,\ndated.jpg,old,,\n"
        "dated.jpg,20,,2\nx/copy.jpg,30.0,,\n",
    )
    assert (added.added, added.unchanged, added.labels) == (3, 0, 3)
    assert added.refused == {"several_faces": 1, "no_such_face": 1, "unknown": 2, "no_age": 4, "no_chance": 1}
    assert "2 labels name no picture with a face that has a row in this archive, such as 'none.jpg'." in added.told
    known = late.read(table, "a").set_index(["content_hash", "face"])
    assert known["age"].to_dict() == {("1" * 64, 0): 30, ("2" * 64, 1): 40, ("4" * 64, 0): 5}
    assert known.loc[("2" * 64, 1), ["origin", "chance"]].to_list() == ["asked", 0.25]
    assert known.loc[("1" * 64, 0), "origin"] == "given"
    kept = folder_of(table, "a") / "labels.parquet"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_one_face_with_two_ages_in_a_file_has_none(table: Path) -> None:
    added = add(table, "path,age\none.jpg,30\nx/copy.jpg,31\none.jpg,30\ndated.jpg,1\n")
    assert (added.added, added.refused) == (1, {"contradictory": 2})


def test_later_labels_stand_in_the_place_of_earlier_ones_which_are_kept(table: Path) -> None:
    add(table, "path,age\none.jpg,30\n")
    assert add(table, "path,age\nx/copy.jpg,30\n").unchanged == 1
    added = add(table, "path,age\none.jpg,33\n")
    assert (added.added, added.labels) == (1, 1)
    assert late.read(table, "a")["age"].to_list() == [33]
    assert pq.read_table(folder_of(table, "a") / "labels.parquet")["age"].to_pylist() == [30, 33]
    assert late.read(table, "a", date(2020, 1, 1)).empty


def test_a_birth_date_becomes_the_age_at_capture_and_is_not_kept(table: Path) -> None:
    file = table.parent / "births.parquet"
    born = pa.array([date(1990, 6, 30), date(1990, 6, 30), date(2021, 1, 1)])
    pq.write_table(pa.table({"path": ["dated.jpg", "one.jpg", "dated.jpg"], "birth_date": born}), file)
    added = late.add(table, KEY, file)
    assert (added.added, added.refused) == (1, {"no_capture_date": 1, "no_age": 1})
    assert late.read(table, "a")["age"].to_list() == pytest.approx([30.0], abs=0.01)
    assert b"1990" not in (folder_of(table, "a") / "labels.parquet").read_bytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,years\none.jpg,30\n", "needs the columns path and age"),
        ("path,age,birth_date\none.jpg,30,1990-01-01\n", "or path and birth_date"),
        ("path,age,age_low,run_id\none.jpg,30,20,r\n", "export of estimates"),
        ("path,age\none.jpg,30,7\n", "more fields than columns"),
        ("path,age\n", "holds no labels"),
    ],
)
def test_a_file_of_another_kind_changes_nothing(table: Path, text: str, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        add(table, text)
    assert late.read(table, "a").empty


def test_damaged_and_missing_files_are_told(table: Path) -> None:
    (table.parent / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(LabelError, match="can't be read as a Parquet file"):
        late.add(table, KEY, table.parent / "broken.parquet")
    with pytest.raises(UsageError, match="no CSV or Parquet file"):
        late.add(table, KEY, table.parent / "nothing.csv")


def test_labels_move_and_end_with_their_archive(table: Path, tmp_path: Path) -> None:
    add(table, "path,age\none.jpg,30\n")
    (tmp_path / "elsewhere").mkdir()
    archives.move(table, "a", tmp_path / "elsewhere")
    assert len(late.read(table, "a")) == 1
    shutil.copytree(table, tmp_path / "copy")
    assert len(late.read(tmp_path / "copy", "a")) == 1
    archives.remove(table, "a", tmp_path / "reports")
    assert not list(table.rglob("labels*"))
