import csv
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rows import row, writer

from agewatch.errors import TableError, UsageError
from agewatch.exports.export import export as write
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer


def export(tmp_path: Path, form: Any, **options: Any) -> Path:
    out = tmp_path / f"out.{form}"
    write(tmp_path / "table", out, format=form, model=options.pop("model", "m-1@0"), **options)
    return out


def test_exports_agree_and_follow_the_contract(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row('quote".jpg', age=30.1), row("none.jpg", face=None, age=None, error="a, b")])
    text = export(tmp_path, "csv").read_bytes()
    header = ",".join(f'"{name}"' for name in predictions.SCHEMA.names)  # quoted, so that DuckDB expects quotes
    assert text.startswith(header.encode() + b"\r\n")
    records = {record["path"]: record for record in csv.DictReader(text.decode().splitlines())}
    assert records['quote".jpg']["age"] == "30.1"
    assert records['quote".jpg']["face"] == "0"
    assert records['quote".jpg']["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert records["none.jpg"]["face"] == ""
    assert records["none.jpg"]["error"] == "a, b"
    listed = {record["path"]: record for record in json.loads(export(tmp_path, "json").read_text())}
    assert listed['quote".jpg']["age"] == 30.1
    assert listed["none.jpg"]["age"] is None
    assert listed["none.jpg"]["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert pq.read_table(export(tmp_path, "parquet")).schema.equals(predictions.SCHEMA)


def test_exports_take_one_model_and_its_latest_mode(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row("x.jpg", age=1)])
    later = datetime(2027, 1, 1, tzinfo=UTC)
    crop = Writer(tmp_path / "table", Key("a", "m-1@0", "crop"), root=tmp_path)
    crop.write([row("x.jpg", age=2, mode="crop", scored_at=later)])
    writer(tmp_path, tmp_path, model="m-2@0").write([row("x.jpg", age=3, model="m-2@0", scored_at=later)])
    assert [record["age"] for record in json.loads(export(tmp_path, "json").read_text())] == [2]
    assert len(json.loads(export(tmp_path, "json", model=None).read_text())) == 3
    assert json.loads(export(tmp_path, "json", statuses=["no_face"]).read_text()) == []
    with pytest.raises(UsageError, match="no archive 'b'"):
        export(tmp_path, "csv", archive="b")


def test_a_damaged_table_is_not_called_an_empty_one(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row("x.jpg")])
    with pytest.raises(TableError, match="no rows of the model m-9@0"):
        export(tmp_path, "csv", model="m-9@0")
    [data] = (tmp_path / "table").rglob("*.parquet")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    for model in ("m-1@0", None):
        with pytest.raises(TableError, match="table can't be read"):
            export(tmp_path, "csv", model=model)
    for log in (tmp_path / "table" / "_delta_log").glob("*.json"):
        log.write_text("{torn")
    with pytest.raises(TableError, match=r"can't be opened: [^<>]*\.$"):
        export(tmp_path, "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_an_out_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row("x.jpg")])
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "folder").mkdir()
    for out in ("file.txt/rows.csv", "file.txt/deep/rows.csv", "folder"):
        with pytest.raises(TableError, match=f"{out} can't be written: [A-Z]"):
            write(tmp_path / "table", tmp_path / out, format="csv", model="m-1@0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder", "table"]


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_an_out_that_is_not_utf8_is_written(tmp_path: Path, form: Any) -> None:
    writer(tmp_path, tmp_path).write([row("x.jpg")])
    out = Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"\xff"))
    assert write(tmp_path / "table", out, format=form, model=None) == 1
    assert out.stat().st_size > 0


def test_a_pipe_is_refused_and_a_link_is_followed(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path).write([row("a.jpg")])
    pipe, link, target = (tmp_path / name for name in ("pipe", "link.csv", "target.csv"))
    os.mkfifo(pipe)
    link.symlink_to(target)
    with pytest.raises(UsageError, match="pipe"):
        write(tmp_path / "table", pipe, format="csv", model=None)
    assert pipe.is_fifo()
    assert write(tmp_path / "table", link, format="csv", model=None) == 1
    assert link.is_symlink()
    assert "a.jpg" in target.read_text()
