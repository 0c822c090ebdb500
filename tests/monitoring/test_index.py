"""The page of all reports is made of what lies there, whatever that is; Evidently's workspace holds what it drew."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from axe_core_python import sync_playwright
from browser import opened
from evidently.ui.workspace import Workspace
from models import tiny_model
from nights import FIRST, night, store

from agewatch.estimator.model import AgeModel
from agewatch.settings import Settings
from agewatch.upkeep import retention
from monitoring import drift, index

AXE = Path(sync_playwright.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
SERIOUS = """(async () => (await axe.run()).violations
  .filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => one.id).join())()"""
ODD = "Grün & <b>Söhne</b> 100%"


def links(page: Path) -> list[Path]:
    """The reports that the page leads to."""
    found = re.findall(r'href="([^"#]+)"', page.read_text(encoding="utf-8"))
    return [page.parent / unquote(link) for link in found]


def told(archive: str, number: int, verdict: str) -> dict[str, Any]:
    """A `drift.json` as far as the page goes by it."""
    days = [str(FIRST + timedelta(days=n)) for n in range(number + 1)]
    windows = [{"from": each, "age_effect": None if n == 3 else n / 10} for n, each in enumerate(days)]
    return {
        "schema": 2, "archive": archive, "verdict": verdict, "headline": f"night {number} of <i>", "cause": None,
        "since": days[-1], "window": {"from": days[-1]}, "windows": windows,
    }  # fmt: skip


def write(reports: Path, archive: str, number: int, content: object) -> Path:
    at = datetime(2026, 1, 1, 4, tzinfo=UTC) + timedelta(days=number)
    folder = drift.archive_dir(reports, archive) / at.strftime("%Y%m%dT%H%M%S.%fZ")
    folder.mkdir(parents=True)
    (folder / "drift.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "index.html").write_text("<title>a report</title>")
    return folder


def test_sixty_nights_and_an_odd_name_are_listed_newest_first_and_usable_in_a_browser(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    for number in range(60):
        write(reports, ODD, number, told(ODD, number, "drift" if number > 50 else "no_drift"))
    write(reports, "port", 0, told("port", 0, "too_little_data"))
    index.write(reports)
    page = reports / "index.html"
    assert page.stat().st_mode & 0o777 == 0o600
    leading = links(page)
    assert len(set(leading)) == 61
    assert all(link.is_file() for link in leading)
    with opened(tmp_path / "profile") as tab:
        seen = tab.visit(page.as_uri(), tmp_path / "page.png", "true")
        assert ODD in seen.text
        assert seen.text.index("night 59 of <i>") < seen.text.index("Too little data")
        tab.value(AXE)
        for dark in (False, True):
            tab.look(390, 844, dark=dark)
            tab.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            assert tab.value("document.documentElement.scrollWidth <= innerWidth")
            assert tab.value(SERIOUS) == ""
        tab.value("document.querySelector('section a').click()")
        assert title_of(tab) == "a report"
        assert seen.problems == []


def title_of(tab: Any) -> str:
    """What page is there once the one that is left is gone, which refuses questions meanwhile."""
    for _ in range(50):
        time.sleep(0.1)
        with suppress(RuntimeError):
            if (title := tab.value("document.title")) != "Drift reports":
                return str(title)
    return "the same page"


def test_what_is_damaged_or_old_is_named_and_what_is_cleared_away_or_kept_is_seen(tmp_path: Path) -> None:
    home, reports = tmp_path, tmp_path / "reports"
    kept = [write(reports, "town", number, told("town", number, "no_drift")) for number in range(retention.REPORTS + 3)]
    (kept[0] / "keep").touch()
    for number, content in enumerate(("{torn", "[]", {"schema": 1}, told("town", 0, "perhaps"))):
        write(reports, "old", number, content)
    index.write(reports)
    text = (reports / "index.html").read_text()
    assert text.count("20260101T040000.000000Z") >= 1
    assert len(re.findall(r"Not read, as damaged", text)) == 1
    assert len(set(links(reports / "index.html"))) == retention.REPORTS + 3
    retention.tidy(Settings(home=home), datetime.now(UTC))
    index.write(reports)
    left = set(links(reports / "index.html"))
    assert len(left) == retention.REPORTS + 1
    assert all(link.is_file() for link in left)
    shutil.rmtree(reports / "town")
    shutil.rmtree(reports / "old")
    index.write(reports)
    assert "No report lies here yet" in (reports / "index.html").read_text()


def test_runs_enter_the_index_and_evidentlys_workspace_and_a_removed_archive_leaves_both(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tmp_path / "model")
    model = AgeModel.load(folder).id
    nights = [night(0, 2500, model=model), night(1, 300, older=20, folder="secret place", model=model)]
    for archive in ("town", "port"):
        store(home / "predictions", *nights, archive=archive, root=tmp_path / archive)
    monkeypatch.setattr(retention, "REPORTS", 2)
    for archive in ("town", "port", "town", "town"):
        drift.run(archive, model=folder)
    projects = {project.name: project.id for project in Workspace(str(home / "evidently")).list_projects()}
    assert set(projects) == {"town", "port"}
    retention.tidy(Settings(), datetime.now(UTC))
    assert len(Workspace(str(home / "evidently")).list_runs(projects["town"])) == 2
    assert not [file for file in (home / "evidently").rglob("*.json") if "secret" in file.read_text()]
    index.write(home / "reports")
    listed = links(home / "reports" / "index.html")
    assert {link.parents[1].name for link in listed} == {"town", "port"}
    back = re.search(r'href="([^"]+index\.html)">all reports', listed[0].read_text())
    assert back
    assert (listed[0].parent / back[1]).resolve() == (home / "reports" / "index.html").resolve()
    command = [sys.executable, "-m", "agewatch", "archives", "remove", "town"]
    subprocess.run(command, check=True, capture_output=True)
    assert {link.parents[1].name for link in links(home / "reports" / "index.html")} == {"port"}
    assert [project.name for project in Workspace(str(home / "evidently")).list_projects()] == ["port"]
