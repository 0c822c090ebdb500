"""Backup and restore: nothing is scored twice, nothing is half made."""

import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from models import model_file
from rows import row

from agewatch import api
from agewatch.errors import AgewatchError, UsageError
from agewatch.release import store
from agewatch.scoring import archives, baseline, predictions
from agewatch.scoring.beside import folder_of
from agewatch.scoring.merging import COMMITS
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from agewatch.settings import Settings
from agewatch.upkeep.backup import backup
from agewatch.upkeep.restore import restore

AGEWATCH = str(Path(sys.executable).with_name("agewatch"))


def a_home(tmp_path: Path) -> Settings:
    """A home with a table of a few rows, and a store with a promoted model."""
    settings = Settings(home=tmp_path / "home", model_store=tmp_path / "store")
    settings.home.mkdir()
    writer_of(settings).write([row("a.jpg"), row("b.jpg")])
    store.promote(settings.model_store, model_file(settings.model_store, "1"))
    return settings


def writer_of(settings: Settings) -> Writer:
    return Writer(settings.predictions, Key("a", "m-1@0", "detect"), root=settings.home.parent)


def elsewhere(settings: Settings, name: str = "other") -> Settings:
    parent = settings.home.parent
    return Settings(home=parent / name / "home", model_store=parent / name / "store")


def held(settings: Settings) -> list[dict[str, object]]:
    return predictions.read(settings.predictions).sort_by("path").to_pylist()


def no_schedule(tmp_path: Path) -> Path:
    return tmp_path / "no" / "prefect.yaml"


def test_at_another_path_nothing_is_scored_twice_and_nothing_is_forgotten(
    archive: Path, home: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, schedule = Settings(), tmp_path / "prefect.yaml"
    api.score_archive(archive, model=model_folder, workers=1)
    api.score_archive(archive, model=model_folder, workers=1, faces="crop")
    store.promote(settings.model_store, model_file(settings.model_store, "1"))
    baseline.accept(settings.predictions, "archive", date(2026, 1, 1), date(2026, 2, 1))
    beside = folder_of(settings.predictions, "archive")
    beside.mkdir(parents=True, exist_ok=True)
    for name in ("labels.parquet", "canaries.json", "summaries.parquet", "labels.lock"):
        (beside / name).write_text(name)
    (home / "nights").mkdir()
    with closing(sqlite3.connect(home / "nights" / "ledger.sqlite")) as db, db:
        db.execute("CREATE TABLE nights (due TEXT)")
        db.execute("INSERT INTO nights VALUES ('2026-01-01T01:00:00Z')")
    (home / "train" / "run" / "member-0").mkdir(parents=True)
    (home / "train" / "run" / "config.json").write_text("{}")
    (home / "train" / "run" / "member-0" / "checkpoint.pt").write_bytes(b"large")
    schedule.write_text("name: agewatch\n")
    before, mode = (
        held(settings),
        predictions.latest_mode(settings.predictions, archive="archive", model=model_id(home)),
    )
    kept = backup(settings, tmp_path / "b.tar", schedule)
    assert (kept.archives, kept.models) == (["archive"], 1)
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600

    monkeypatch.setenv("AGEWATCH_HOME", str(tmp_path / "new" / "home"))
    monkeypatch.setenv("AGEWATCH_MODEL_STORE", str(tmp_path / "new" / "store"))
    new = Settings()
    restored = restore(new, tmp_path / "b.tar", tmp_path / "new" / "prefect.yaml")
    assert (restored.archives, restored.notes) == (["archive"], [])
    assert held(new) == before
    assert predictions.latest_mode(new.predictions, archive="archive", model=model_id(new.home)) == mode == "crop"
    assert baseline.accepted(new.predictions, "archive") == baseline.accepted(settings.predictions, "archive")
    assert sorted(file.name for file in folder_of(new.predictions, "archive").iterdir()) == [
        "canaries.json", "labels.parquet",
    ]  # fmt: skip
    assert store.read_pointer(new.model_store) == store.read_pointer(settings.model_store)
    assert store.current(new.model_store) is not None
    with closing(sqlite3.connect(new.home / "nights" / "ledger.sqlite")) as db:
        assert db.execute("SELECT due FROM nights").fetchall() == [("2026-01-01T01:00:00Z",)]
    assert [file.name for file in (new.home / "train").rglob("*") if file.is_file()] == ["config.json"]
    assert (tmp_path / "new" / "prefect.yaml").read_text() == schedule.read_text()
    assert not [file for file in new.home.rglob("*") if file.is_file() and file.stat().st_mode & 0o077]
    assert api.score_archive(archive, model=model_folder, workers=1).scored == 0
    archive.rename(tmp_path / "moved")
    archives.move(new.predictions, "archive", tmp_path / "moved")
    assert api.score_archive(tmp_path / "moved", model=model_folder, workers=1, name="archive").scored == 0
    with pytest.raises(UsageError, match="holds a predictions table already"):
        restore(new, tmp_path / "b.tar", schedule)


def model_id(home: Path) -> str:
    [model] = set(predictions.read(home / "predictions", columns=["model"])["model"].to_pylist())
    return str(model)


def test_a_backup_while_a_run_and_the_ledger_write_is_of_one_moment(tmp_path: Path) -> None:
    settings, over = a_home(tmp_path), threading.Event()
    ledger = settings.home / "nights" / "ledger.sqlite"
    ledger.parent.mkdir()
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("CREATE TABLE nights (n INTEGER, twin INTEGER)")

    def write() -> None:
        made, n = writer_of(settings), 0
        with closing(sqlite3.connect(ledger, timeout=60)) as db:
            while not over.is_set():
                n += 1
                made.write([row(f"{n % 40}-{part}.jpg", run_id=str(n)) for part in range(10)])
                with db:
                    db.execute("INSERT INTO nights VALUES (?, ?)", (n, n))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        files, version = [], 0
        while version <= COMMITS + 5:  # beyond a checkpoint and a merging of files
            files.append(tmp_path / f"{len(files)}.tar")
            backup(settings, files[-1], no_schedule(tmp_path))
            version = predictions.open_table(settings.predictions).version()
    finally:
        over.set()
        thread.join()
    for number, file in enumerate([files[0], files[len(files) // 2], files[-1]]):
        new = elsewhere(settings, f"new-{number}")
        restore(new, file, no_schedule(tmp_path))
        runs: dict[str, set[object]] = {}
        for found in held(new)[2:]:
            runs.setdefault(str(found["path"]).split("-")[0], set()).add(found["run_id"])
        assert all(len(ids) == 1 for ids in runs.values()), "a commit is there whole or not at all"
        with closing(sqlite3.connect(new.home / "nights" / "ledger.sqlite")) as db:
            assert not db.execute("SELECT n FROM nights WHERE n != twin").fetchall()
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def hostile(name: str, **changed: object) -> Callable[[Path, Path], None]:
    def make(good: Path, bad: Path) -> None:
        with tarfile.open(good) as source, tarfile.open(bad, "w") as tar:
            for member in source:
                tar.addfile(member, source.extractfile(member))
            info = tarfile.TarInfo(name)
            for attribute, value in changed.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(b""))

    return make


def torn(share: float) -> Callable[[Path, Path], None]:
    return lambda good, bad: bad.write_bytes(good.read_bytes()[: int(good.stat().st_size * share)]) and None


def flipped(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    data[data.index(b"PAR1") + 40] ^= 1
    bad.write_bytes(data)


def newer(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes().replace(b'{"format":1', b'{"format":2'))


BAD = {
    "no tar": (lambda good, bad: bad.write_bytes(b"rows" * 500) and None, "torn, or no backup"),
    "empty": (lambda good, bad: bad.write_bytes(b"") and None, "torn, or no backup"),
    "torn in the middle": (torn(0.5), "torn"),
    "without its end": (torn(0.05), "torn"),
    "a byte flipped": (flipped, "is damaged"),
    "of a newer form": (newer, "newer"),
    "leads outside": (hostile("predictions/../../../outside"), "no backup that agewatch made"),
    "absolute": (hostile("/tmp/outside"), "no backup that agewatch made"),
    "a link": (hostile("store/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no backup that agewatch made"),
    "a file of its own": (hostile("store/more.mar"), "is damaged"),
    "not ours": (hostile("somewhere/else"), "no backup that agewatch made"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_torn_foreign_or_hostile_file_is_a_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    settings = a_home(tmp_path)
    backup(settings, tmp_path / "good.tar", no_schedule(tmp_path))
    make, told = BAD[name]
    make(tmp_path / "good.tar", tmp_path / "bad.tar")
    new = Settings(home=tmp_path / "new", model_store=tmp_path / "new-store")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(AgewatchError, match=told):
        restore(new, tmp_path / "bad.tar", no_schedule(tmp_path))
    assert set(tmp_path.rglob("*")) == before


def test_a_store_that_went_another_way_is_not_overwritten(tmp_path: Path) -> None:
    settings = a_home(tmp_path)
    backup(settings, tmp_path / "b.tar", no_schedule(tmp_path))
    new = elsewhere(settings)
    new.model_store.mkdir(parents=True)
    store.promote(new.model_store, model_file(new.model_store, "7"))  # as a checkout comes with a starter
    shutil.copytree(new.model_store, tmp_path / "fresh")
    store.promote(new.model_store, model_file(new.model_store, "8"))
    with pytest.raises(UsageError, match="a model was promoted that the backup does not know, agewatch-8@"):
        restore(new, tmp_path / "b.tar", no_schedule(tmp_path))
    (new.model_store / "agewatch-1.mar").write_bytes(b"another")
    with pytest.raises(UsageError, match=r"agewatch-1\.mar is another model"):
        restore(new, tmp_path / "b.tar", no_schedule(tmp_path))
    assert not new.home.exists()
    fresh = Settings(home=new.home, model_store=tmp_path / "fresh")
    restore(fresh, tmp_path / "b.tar", no_schedule(tmp_path))
    assert store.read_pointer(fresh.model_store) == store.read_pointer(settings.model_store)
    assert sorted(file.name for file in fresh.model_store.glob("*.mar")) == ["agewatch-1.mar", "agewatch-7.mar"]


def test_a_backup_or_restore_that_is_killed_leaves_the_old_and_the_next_one_completes(tmp_path: Path) -> None:
    settings = a_home(tmp_path)
    (settings.model_store / "agewatch-2.mar").write_bytes(os.urandom(2**25))
    file, new = tmp_path / "out" / "b.tar", elsewhere(settings)
    file.parent.mkdir()

    def start(verb: str, of: Settings) -> subprocess.Popen[bytes]:
        env = os.environ | {"AGEWATCH_HOME": str(of.home), "AGEWATCH_MODEL_STORE": str(of.model_store)}
        return subprocess.Popen([AGEWATCH, verb, str(file)], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)

    def kill_when(process: subprocess.Popen[bytes], begun: Callable[[], bool]) -> bool:
        while process.poll() is None and not begun():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    assert kill_when(
        start("backup", settings), lambda: any(each.stat().st_size > 2**20 for each in file.parent.iterdir())
    )
    assert not file.exists()
    assert start("backup", settings).wait() == 0
    assert [each.name for each in file.parent.iterdir()] == ["b.tar"], "what was left is swept"
    assert kill_when(start("restore", new), lambda: bool(list(new.home.glob(".restoring/content/store/*"))))
    assert not new.predictions.exists()
    assert start("restore", new).wait() == 0
    assert held(new) == held(settings)
    assert [each.name for each in new.home.iterdir()] == ["predictions"]


FULL = """
import json, os, subprocess, sys
folder, agewatch, file, home, store = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
def run(*command, **env):
    done = subprocess.run([agewatch, *command], capture_output=True, text=True, env=os.environ | env)
    return {"code": done.returncode, "stderr": done.stderr, "left": os.listdir(folder)}
told = [run("backup", f"{folder}/b.tar", AGEWATCH_HOME=home, AGEWATCH_MODEL_STORE=store),
        run("restore", file, AGEWATCH_HOME=f"{folder}/home", AGEWATCH_MODEL_STORE=f"{folder}/store")]
print(json.dumps(told))
"""


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    settings = a_home(tmp_path)
    (settings.model_store / "agewatch-2.mar").write_bytes(os.urandom(2**23))
    backup(settings, tmp_path / "b.tar", no_schedule(tmp_path))
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FULL, str(disk), AGEWATCH]
    done = subprocess.run(
        [*small, str(tmp_path / "b.tar"), str(settings.home), str(settings.model_store)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    for told, words in zip(json.loads(done.stdout), ("No space left on device", "MB are free"), strict=True):
        assert told["code"] == 1
        assert words in told["stderr"]
        assert "Traceback" not in told["stderr"]
        assert told["left"] == []


def test_without_a_table_there_is_nothing_to_keep(tmp_path: Path) -> None:
    with pytest.raises(AgewatchError, match="no predictions table"):
        backup(Settings(home=tmp_path / "none"), tmp_path / "b.tar", no_schedule(tmp_path))
    assert not list(tmp_path.iterdir())
