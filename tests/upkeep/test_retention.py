"""What is cleared away after its limit, what never is, and that nobody is disturbed by it."""

import json
import os
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from models import model_file
from rows import row

from agewatch.errors import TableError
from agewatch.estimator.model import AgeModel
from agewatch.nights.ledger import Ledger
from agewatch.scoring import predictions
from agewatch.scoring.beside import folder_of
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from agewatch.settings import Settings
from agewatch.upkeep import retention
from agewatch.upkeep.retention import tidy
from agewatch.upkeep.table import tidy as tidy_table

NOW = datetime.now(UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir()
    return Settings(home=tmp_path / "home", model_store=tmp_path / "store")


def aged(path: Path, days: float) -> None:
    """As if a file, or all in a folder, had last been written so many days ago."""
    when = (NOW - timedelta(days=days)).timestamp()
    for each in (*path.rglob("*"), path):
        os.utime(each, (when, when))


def report(settings: Settings, night: int, verdict: str) -> str:
    name = f"{NOW - timedelta(days=1000 - night):%Y%m%dT%H%M%S.%fZ}"
    folder = settings.reports / "town" / name
    folder.mkdir(parents=True)
    (folder / "index.html").write_bytes(bytes(1000))
    (folder / "drift.json").write_text(json.dumps({"verdict": verdict}))
    return name


def test_of_reports_the_newest_stay_and_each_in_which_a_drift_began(settings: Settings) -> None:
    """Night by night, so that the report before a drift's first is long gone when that one grows old."""
    verdicts = ["no_drift"] * 5 + ["drift"] * 20 + ["no_drift"] * 60 + ["drift"] * 100 + ["too_little_data"] * 30
    names, went = [], 0
    for night, verdict in enumerate(verdicts):
        names.append(report(settings, night, verdict))
        went += tidy(settings, NOW).reports.n if night % 7 == 0 else 0
    (settings.reports / "town" / "mine").mkdir()
    (settings.reports / "town" / names[-1].replace("Z", "0Z")).mkdir()  # no report of ours, or one being written
    last = tidy(settings, NOW)
    left = {folder.name for folder in (settings.reports / "town").iterdir()}
    firsts = {names[5], names[85]}
    assert left - {"mine", names[-1].replace("Z", "0Z")} == set(names[-90:]) | firsts
    assert went + last.reports.n == len(names) - 92
    assert last.reports.bytes == last.reports.n * (1000 + len('{"verdict": "drift"}'))
    assert not last.problems


def commit_aged(table: Path, version: int, days: float) -> None:
    """As if a commit, and the files that it added, had been made so many days ago."""
    file, when = table / "_delta_log" / f"{version:020}.json", (NOW - timedelta(days=days)).timestamp()
    actions = [json.loads(line) for line in file.read_text().splitlines()]
    for action in actions:
        for kind, name in (("commitInfo", "timestamp"), ("remove", "deletionTimestamp"), ("add", "modificationTime")):
            if kind in action:
                action[kind][name] = int(when * 1000)
        if "add" in action:
            os.utime(table / action["add"]["path"], (when, when))
    file.write_text("\n".join(map(json.dumps, actions)))
    os.utime(file, (when, when))


def test_versions_of_the_last_thirty_days_stay_readable_and_older_files_go(settings: Settings) -> None:
    """delta-rs alone would take the file that was written long ago and replaced last week."""
    table = settings.predictions
    writer = Writer(table, Key("a", "m-1@0", "detect"), root=settings.home)
    for age in (30.0, 31.0, 32.0):
        writer.write([row("a.jpg", age=age)])
    commit_aged(table, 2, 100)  # it added the first file, and each later one replaced the file before
    commit_aged(table, 3, 10)
    predictions.open_table(table).create_checkpoint()
    reader = predictions.open_table(table)
    reader.load_as_version(2)
    assert DeltaTable(table).vacuum(720, full=True), "this test is of no use: delta-rs keeps it by itself"
    (table / "notes.txt").write_text("a person's")
    (table / "part-00000-of-a-killed-run-c000.snappy.parquet").write_bytes(b"half")
    for name in ("notes.txt", "part-00000-of-a-killed-run-c000.snappy.parquet"):
        aged(table / name, 100)
    beside = folder_of(table, "a") / "labels.parquet"
    beside.parent.mkdir(parents=True)
    beside.write_text("labels")
    aged(beside, 1000)

    assert tidy(settings, NOW).versions.n == 1, "what a killed run had written goes"
    assert predictions.read_table(reader, table, None, ["age"])["age"].to_pylist() == [30.0]
    assert tidy(settings, NOW + timedelta(days=19)).versions.n == 0
    writer.write([row("b.jpg")])
    later = tidy(settings, NOW + timedelta(days=21))
    assert (later.versions.n, later.problems) == (1, [])
    assert predictions.read(table, columns=["age"])["age"].to_pylist().count(32.0) == 1
    assert beside.exists()
    assert (table / "notes.txt").exists()
    assert len(predictions.read(table)) == 2


def test_a_table_is_tidied_under_its_readers_and_writers_and_its_last_month_stays(settings: Settings) -> None:
    table = settings.predictions
    writer = Writer(table, Key("a", "m-1@0", "detect"), root=settings.home)
    for number in range(4):
        writer.write([row(f"{number}.jpg", age=float(number))])
    before = predictions.open_table(table)
    done = tidy_table(table, NOW)
    assert (done.files_before, done.files, done.deleted) == (4, 1, 0)
    assert len(predictions.read_table(before, table, None)) == 4
    writer.write([row("0.jpg", age=9.0)])  # by a snapshot of before
    assert sorted(predictions.read(table)["age"].to_pylist()) == [1.0, 2.0, 3.0, 9.0]
    for version in range(2, before.version() + 1):
        commit_aged(table, version, 100)
    commit_aged(table, before.version() + 1, 31)
    for checkpoint in (table / "_delta_log").glob("*checkpoint*"):
        checkpoint.unlink()  # it says when what was removed was
    done = tidy_table(table, NOW)
    assert done.deleted == 4, "those of the four commits, not the merged one, which went but now"
    assert len(predictions.read(table)) == 4
    with pytest.raises(TableError, match="no predictions table"):
        tidy_table(settings.home / "nowhere", NOW)


def test_two_at_once_and_a_run_that_writes_disturb_nobody(settings: Settings) -> None:
    writer = Writer(settings.predictions, Key("a", "m-1@0", "detect"), root=settings.home)
    for night in range(150):
        report(settings, night, "no_drift")
    tidied, errors = [], []

    def often() -> None:
        for _ in range(10):
            tidied.append(tidy(settings, NOW + timedelta(days=60)))

    def write() -> None:
        try:
            for number in range(30):
                writer.write([row(f"{number % 7}.jpg", age=float(number))])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=what) for what in (often, often, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [problem for one in tidied for problem in one.problems] == []
    assert sum(one.reports.n for one in tidied) == 60
    assert len(predictions.read(settings.predictions)) == 7


def training_run(settings: Settings, name: str, days: float, *, model: Path | None = None) -> Path:
    """A run's folder, finished where it has the model that became a file of the store."""
    run = settings.home / "train" / name
    (run / "member-0").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "config.json").write_text(json.dumps({"config": {}, "data_hash": name, "members": []}))
    (run / "member-0" / "curve.csv").write_text("epoch\n")
    (run / "member-0" / "checkpoint.pt").write_bytes(bytes(5000))
    (run / "faces.parquet").write_bytes(bytes(3000))
    (run / "model" / "model.json").write_text(json.dumps({"data_hash": name, "metrics": {"mae": 6}, "version": "0"}))
    aged(run, days)
    return run


DAYS = {"old": 90, "made": 80, "torn": 3, "last": 2}


def test_of_training_runs_two_stay_whole_and_of_those_with_a_model_the_records(settings: Settings) -> None:
    settings.model_store.mkdir()
    runs = {name: training_run(settings, name, days) for name, days in DAYS.items()}
    with zipfile.ZipFile(settings.model_store / "agewatch-7.mar", "w") as archive:
        told = {"data_hash": "made", "metrics": {"mae": 6, "recalibrated": "town"}, "version": "7"}
        archive.writestr("model.json", json.dumps(told))
    (training_run(settings, "interrupted", 85) / "model" / "model.json").unlink()
    aged(settings.home / "train" / "interrupted", 6)
    os.utime(settings.home / "train" / "interrupted" / "config.json", (1, 1))
    (settings.home / "train" / "mine").mkdir()
    tidied = tidy(settings, NOW)
    assert (tidied.training.n, tidied.problems) == (3, [])
    assert not runs["old"].exists()
    left = [str(path.relative_to(runs["made"])) for path in sorted(runs["made"].rglob("*")) if path.is_file()]
    assert left == ["config.json", "member-0/curve.csv", "model/model.json"]
    for whole in ("torn", "last", "interrupted"):
        assert (settings.home / "train" / whole / "member-0" / "checkpoint.pt").exists()
    assert (settings.home / "train" / "mine").exists()
    tidy(settings, NOW + timedelta(days=30))
    assert not (settings.home / "train" / "interrupted").exists()
    assert runs["made"].exists()
    (settings.model_store / "agewatch-8.mar").write_bytes(b"no zip")
    assert tidy(settings, NOW + timedelta(days=60)).problems == [
        "Old training runs could not be cleared away (ModelError)."
    ]


def test_caches_logs_and_rows_of_nights_go_by_their_age_and_nothing_else_does(settings: Settings) -> None:
    model = AgeModel.load(model_file(settings.model_store, "1")).hash12
    Writer(settings.predictions, Key("a", "m-1@0", "detect"), root=settings.home)
    for name, days in (
        (f"{model}-openvino-2026.1", 300), ("0123456789ab-openvino-2026.1", 31), ("ba9876543210-openvino-2026.1", 29),
        ("chips-abc", 8), ("chips-new", 6), (".converting-x", 2), ("my-own", 500), (".tidied-00000000", 0),
    ):  # fmt: skip
        (settings.cache / name).mkdir(parents=True)
        (settings.cache / name / "x").write_bytes(bytes(100))
        aged(settings.cache / name, days)
    (settings.home / ".restoring").mkdir()
    aged(settings.home / ".restoring", 2)
    for archive in ("a", "erased"):
        folder_of(settings.predictions, archive).mkdir(parents=True)
        (folder_of(settings.predictions, archive) / "summaries.parquet").write_bytes(bytes(100))
        (folder_of(settings.predictions, archive) / "labels.parquet").write_bytes(bytes(100))
    logs = settings.home / "nights" / "logs"
    logs.mkdir(parents=True)
    ledger = Ledger(settings.home)
    years_ago = NOW - timedelta(days=4 * 365)
    watched = ledger.watch("a", "retrain", "0 8 1 * * UTC", years_ago)
    for due in (years_ago, years_ago + timedelta(days=1), NOW):
        ledger.begin("a", "night", due, None)
    for due in (years_ago, NOW):
        ledger.end("a", "night", due, "done", None, {})
    with (logs / "worker.log").open("ab") as log:
        log.write(b"x" * retention.LOG_BYTES + b"the end")
        log.flush()
        tidied = tidy(settings, NOW)
        log.write(b"goes on")
    assert tidied.problems == []
    assert {path.name for path in settings.cache.iterdir()} == {
        f"{model}-openvino-2026.1", "ba9876543210-openvino-2026.1", "chips-new", "my-own",
    }  # fmt: skip
    assert (tidied.caches.n, tidied.caches.bytes) == (5, 500)
    assert [path.name for path in sorted(folder_of(settings.predictions, "erased").iterdir())] == ["labels.parquet"]
    assert (folder_of(settings.predictions, "a") / "summaries.parquet").exists()
    assert (logs / "worker.log").read_bytes() == b"goes on"
    assert (logs / "worker.log.1").read_bytes().endswith(b"xthe end")
    assert (tidied.nights.n, tidied.logs.n) == (1, 1)
    assert [night.outcome for night in ledger.nights("a", "night")] == [None, "done"], "what is under way stays"
    since = ledger.watch("a", "retrain", "0 8 1 * * UTC", NOW)
    assert since > watched, "or the nights whose rows went would be missed for ever"
