"""Arrival belongs to the content: whatever is done to its rows, they say when the archive first held it."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from models import tiny_model
from pictures import encoded
from PIL import Image
from rows import row, writer

from agewatch.scoring import predictions
from agewatch.scoring.content import Arrivals, SharedKeys, hash_key
from agewatch.scoring.predictions import ADDED, SCHEMA
from agewatch.scoring.score import Limits, score_archive
from agewatch.scoring.scorer import Execution


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "grey.png").write_bytes(encoded(Image.new("RGB", (60, 60), "grey")))
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def arrived(archive: Path, tmp_path: Path, model_folder: Path, cache: Path) -> Any:
    """Score the archive, and tell every path's times of arrival."""

    def run(**changed: Any) -> dict[str, set[datetime]]:
        options = {"model_path": model_folder, "table": tmp_path / "table", "how": Execution(cache, 1), "mode": "crop"}
        before = datetime.now(UTC)
        score_archive(changed.pop("root", archive), limits=Limits(1), **(options | changed))
        found: dict[str, set[datetime]] = {}
        for each in predictions.read(tmp_path / "table").to_pylist():
            assert each["arrived_at"] <= each["scored_at"]
            times = found.setdefault(f"{each['archive']}/{each['path']}", set())
            times.add(NOW if each["arrived_at"] >= before else each["arrived_at"])
        return found

    return run


NOW = datetime.max.replace(tzinfo=UTC)
"""Stands for a time in the last run."""


def test_a_first_run_is_the_arrival_of_all(arrived: Any) -> None:
    assert arrived() == {"archive/grey.png": {NOW}, "archive/empty.png": {NOW}}


@pytest.mark.parametrize("kind", ["again", "rescored", "touched", "another model", "another mode"])
def test_scoring_again_is_no_arrival(kind: str, arrived: Any, archive: Path, tmp_path: Path) -> None:
    arrived()
    before = arrived()
    assert NOW not in set().union(*before.values())
    if kind == "touched":
        os.utime(archive / "grey.png")
    changed = {
        "rescored": {"again": "all"},
        "another model": {"model_path": tiny_model(tmp_path / "other", seed=1)},
        "another mode": {"mode": "detect"},
    }
    assert arrived(**changed.get(kind, {})) == before


def test_a_copy_arrived_with_its_content_and_a_changed_file_arrives(arrived: Any, archive: Path) -> None:
    arrived()
    [first] = arrived()["archive/grey.png"]
    (archive / "copy.png").write_bytes((archive / "grey.png").read_bytes())
    (archive / "grey.png").rename(archive / "moved.png")
    (archive / "new.png").write_bytes(encoded(Image.new("RGB", (60, 60), "red")))
    found = arrived()
    assert {path: found[f"archive/{path}"] for path in ("copy.png", "moved.png", "new.png")} == {
        "copy.png": {first}, "moved.png": {first}, "new.png": {NOW},
    }  # fmt: skip
    (archive / "copy.png").write_bytes(encoded(Image.new("RGB", (60, 60), "blue")))
    assert arrived()["archive/copy.png"] == {NOW}


def test_each_archive_has_arrivals_of_its_own(arrived: Any, archive: Path, tmp_path: Path) -> None:
    arrived()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "grey.png").write_bytes((archive / "grey.png").read_bytes())
    assert arrived(root=tmp_path / "second")["second/grey.png"] == {NOW}


def test_a_file_that_is_never_read_arrived_when_it_was_first_found() -> None:
    first, now = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    denied = row("locked.jpg", face=None, status="denied", content_hash=None, scored_at=first, arrived_at=None)
    [batch] = pa.Table.from_pylist([denied], SCHEMA).select(Arrivals.COLUMNS).to_batches()
    arrivals = Arrivals([batch], now=now)
    assert arrivals.of(denied) == first
    assert arrivals.of(denied | {"path": "other.jpg"}) == now


def test_what_another_run_wrote_meanwhile_is_learnt(tmp_path: Path) -> None:
    ours, theirs = writer(tmp_path, tmp_path), writer(tmp_path, tmp_path)
    theirs.write([row("theirs.jpg", content_hash="ab" * 32)])
    ours.write([row("ours.jpg", content_hash="ab" * 32)])
    assert len(set(predictions.read(tmp_path / "table")["arrived_at"].to_pylist())) == 1


def older_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A table as agewatch made it before the last columns were added."""
    names = SCHEMA.names[:-ADDED]
    schema = pa.schema([SCHEMA.field(name) for name in names])
    write_deltalake(folder, pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema))
    root = {"agewatch.root.a": str(folder.parent.resolve())}
    DeltaTable(folder).alter.set_table_properties(root, False, CommitProperties())


def test_an_older_table_is_read_with_nulls_and_gains_its_columns_at_its_first_write(tmp_path: Path) -> None:
    old, older = datetime(2026, 1, 2, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC)
    content = "cd" * 32
    older_table(
        tmp_path / "table",
        [row("x.jpg", content_hash=content, scored_at=old), row("y.jpg", content_hash=content, scored_at=older)],
    )
    read = predictions.read(tmp_path / "table")
    assert read.schema.names == SCHEMA.names
    assert all(read[name].null_count == 2 for name in SCHEMA.names[-ADDED:])
    version = DeltaTable(tmp_path / "table").version()
    table = writer(tmp_path, tmp_path)
    assert (len(table.known), DeltaTable(tmp_path / "table").version()) == (2, version)
    assert {"x.jpg", "y.jpg"} == {path for path in ("x.jpg", "y.jpg", "z.jpg") if path in table.known}
    table.write([row("x.jpg", content_hash=content, camera="a camera"), row("z.jpg", content_hash="ef" * 32)])
    found = {row["path"]: row for row in predictions.read(tmp_path / "table").to_pylist()}
    assert [column.name for column in DeltaTable(tmp_path / "table").schema().fields] == SCHEMA.names
    assert (found["x.jpg"]["arrived_at"], found["x.jpg"]["camera"]) == (older, "a camera")
    assert (found["y.jpg"]["arrived_at"], found["y.jpg"]["camera"]) == (None, None)
    assert found["z.jpg"]["arrived_at"] > old


def test_keys_are_found_however_many_there_are() -> None:
    keys = [hash_key(f"{number:x}".rjust(64, "0")[::-1]) for number in range(1, 2000)]
    shared = SharedKeys(keys)
    assert all(key in shared for key in keys)
    assert 12345 not in shared
    assert 0 not in SharedKeys([])
