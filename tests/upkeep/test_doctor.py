"""What the doctor finds wrong, and that what it says mends it."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from models import model_file
from rows import row

from agewatch.errors import ModelError
from agewatch.nights import init
from agewatch.processes import LOOPBACK, free_ports
from agewatch.release import store
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
from agewatch.settings import Settings
from agewatch.upkeep import condition, doctor, machine
from agewatch.upkeep.finding import Check, Finding


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir(mode=0o700)
    return Settings(home=tmp_path / "home", model_store=tmp_path / "store")


def states(check: Check, settings: Settings) -> list[str]:
    return [finding.state for finding in check(settings)]


def test_a_check_that_fails_is_a_finding_and_hides_no_other(settings: Settings) -> None:
    def broken(_settings: Settings) -> Iterator[Finding]:
        raise ZeroDivisionError("half way")
        yield

    def refused(_settings: Settings) -> list[Finding]:
        raise ModelError("The model is damaged.")

    found = doctor.examine(settings, {"a": broken, "b": refused, "c": lambda _: [Finding("c", "ok", "Well.")]})
    assert [(each.check, each.state) for each in found] == [("a", "wrong"), ("b", "wrong"), ("c", "ok")]
    assert "half way" in found[0].sentence
    assert found[1].sentence == "The model is damaged."


def test_a_sound_machine_has_nothing_wrong(settings: Settings) -> None:
    Writer(settings.predictions, Key("a", "m-1@0", "detect"), root=settings.home).write([row("a.jpg")])
    found = doctor.examine(settings)
    assert [each for each in found if each.state == "wrong" and each.check != "ports"] == []
    assert {each.check for each in found} == {*doctor.CHECKS} - {"automations"}, "no retraining is planned"


def test_who_may_look_into_the_home_is_told_and_the_mend_mends(settings: Settings) -> None:
    (settings.home / "reports").mkdir()
    page = settings.home / "reports" / "index.html"
    page.touch()
    page.chmod(0o644)  # whatever this process's umask
    assert states(condition.permissions, settings) == ["warn"]
    settings.home.chmod(0o755)
    [found] = condition.permissions(settings)
    assert (found.state, found.mend is not None) == ("wrong", True)
    subprocess.run(str(found.mend), shell=True, check=True)
    assert states(condition.permissions, settings) == ["ok"]


def test_a_table_that_lost_a_file_and_a_clock_behind_its_rows_are_wrong(settings: Settings) -> None:
    assert states(condition.table, settings) == ["ok"], "there is none yet"
    writer = Writer(settings.predictions, Key("a", "m-1@0", "detect"), root=settings.home)
    writer.write([row("a.jpg")])
    assert states(condition.table, settings) == ["ok"]
    assert states(machine.clock, settings)[0] != "wrong"
    writer.write([row("b.jpg", scored_at=datetime.now(UTC) + timedelta(hours=2))])
    [found] = machine.clock(settings)
    assert (found.state, "the newest row is of" in found.sentence) == ("wrong", True)
    next(settings.predictions.glob("*.parquet")).unlink()
    [found] = condition.table(settings)
    assert found.sentence == "1 of the 2 files of the predictions table are missing."
    (settings.predictions / "_delta_log" / f"{0:020}.json").write_text("torn")
    [found] = doctor.examine(settings, {"table": condition.table})
    assert found.state == "wrong"


def test_a_model_that_changed_since_its_promotion_is_wrong_and_another_damaged_one_is_told(
    settings: Settings,
) -> None:
    store.promote(settings.model_store, model_file(settings.model_store, "1"))
    assert states(condition.model, settings) == ["ok"]
    (settings.model_store / "agewatch-2.mar").write_bytes(b"no zip")
    found = list(condition.model(settings))
    assert [each.state for each in found] == ["warn", "ok"]
    (settings.model_store / "agewatch-1.mar").write_bytes(b"no zip")
    assert states(condition.model, settings) == ["wrong"]


def test_packages_beyond_their_pins_are_named_with_what_breaks(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(machine.packages, settings) == ["ok"]
    for name, version in (("pandas", "3.1.0"), ("sqlalchemy", "2.1.0"), ("fastapi", "0.150.1")):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    *wrong, last = machine.packages(settings)
    assert [(each.state, each.sentence.split()[0]) for each in wrong] == [("wrong", "pandas"), ("wrong", "sqlalchemy")]
    assert "Evidently can't be imported" in wrong[0].sentence
    assert str(wrong[0].mend).endswith("-m pip install 'pandas<3,>=2.2'")
    assert last.state == "ok"


@contextmanager
def answering(port: int, answers: dict[str, bytes]) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((LOOPBACK, port), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield
        finally:
            server.shutdown()


def test_ports_are_free_or_their_own_programs_or_else_that_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_ports = free_ports(2)
    monkeypatch.setattr(machine, "PREFECT_PORT", machine_ports[0])
    monkeypatch.setattr(machine, "SERVE_PORT", machine_ports[1])
    assert states(machine.ports, settings) == ["ok", "ok"]
    with answering(machine_ports[0], {"/api/health": b"true"}), answering(machine_ports[1], {}):
        assert states(machine.ports, settings) == ["ok", "warn"]
        (settings.home / "serve" / str(machine_ports[1])).mkdir(parents=True)
        (settings.home / "serve" / str(machine_ports[1]) / "key_file.json").touch()
        assert states(machine.ports, settings) == ["ok", "ok"]
        assert states(machine.telemetry, settings) == ["ok"]
    with answering(machine_ports[0], {"/api/admin/settings": b'{"server": {"analytics_enabled": true}}'}):
        assert states(machine.ports, settings) == ["wrong", "ok"]
        assert states(machine.telemetry, settings) == ["warn"]


def test_the_folders_of_the_schedule_are_looked_at(tmp_path: Path, settings: Settings) -> None:
    assert states(condition.nights, settings) == ["warn"], "there is no schedule"
    for name in ("full", "empty", "away"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    folders = [tmp_path / name for name in ("full", "empty", "away")]
    init.write(folders, labelled=[], at=datetime.now().time(), timezone="UTC")
    (tmp_path / "empty" / "a.jpg").unlink()
    (tmp_path / "away").rename(tmp_path / "elsewhere")
    found = {each.sentence.split()[3].rstrip(","): each.state for each in condition.nights(settings)}
    assert found == {"full": "ok", "empty": "warn", "away": "wrong"}
    Path("prefect.yaml").write_text("deployments: [")
    [torn] = doctor.examine(settings, {"schedule": condition.nights})
    assert (torn.state, "no YAML" in torn.sentence) == ("wrong", True)
