"""The page of all reports: every archive with its state, nights and trend, made of the `drift.json` that lie there."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from markupsafe import Markup

from monitoring import svg
from monitoring.page import SCHEMA, WORDS, rendered, write_page

NAME = "index.html"
_NIGHTS = 120
"""Reports of an archive that are listed; older ones that were kept are counted."""
_TRIES = 5
_HEIGHT = 44


@dataclass(frozen=True)
class Report:
    """A report as its `drift.json` tells it: the way to its page, its last night, its answer, and years by night."""

    link: str
    night: str
    made: str
    answer: str
    headline: str
    cause: str | None
    since: str | None
    effects: tuple[tuple[str, float], ...]

    @property
    def word(self) -> str:
        """The answer in a word or two."""
        return WORDS[self.answer]

    @property
    def effect(self) -> float | None:
        """How far the mean age of the last night lies from what was accepted, years."""
        return self.effects[-1][1] if self.effects and self.effects[-1][0] == self.night else None

    @property
    def trend(self) -> Markup | None:
        """The mean ages of its nights against what was accepted, as a small line."""
        return _trend(self)


@dataclass(frozen=True)
class Shelf:
    """An archive's reports, the newest first, how many older ones are not listed, and which can't be read."""

    archive: str
    reports: tuple[Report, ...]
    older: int
    unread: tuple[str, ...]


def write(reports: Path) -> None:
    """Make the page anew of what lies below a folder of reports. Raises OSError where it can't be written.

    Another run may write a report meanwhile, and its page before this one: what lies there is looked at again.
    """
    page = reports / NAME
    if not reports.is_dir() or page.is_dir():  # an archive may be called so
        return
    for _ in range(_TRIES):
        lying = _lying(reports)
        shelves = [shelf for folder, runs in lying.items() if (shelf := _shelf(folder, runs)) is not None]
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_page(page, rendered("index.html.jinja", shelves=shelves, made=made))
        if _lying(reports) == lying:
            return


def _lying(reports: Path) -> dict[Path, list[Path]]:
    """The folders of archives, and in each the runs that have a `drift.json`, the newest first."""
    found = {
        folder: sorted((file.parent for file in folder.glob("*/drift.json")), reverse=True)
        for folder in sorted(reports.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return {folder: runs for folder, runs in found.items() if runs}


def _shelf(folder: Path, runs: list[Path]) -> Shelf | None:
    told, unread, archive = [], [], unquote(folder.name)
    for run in runs[:_NIGHTS]:
        try:
            content = json.loads((run / "drift.json").read_bytes())
            told.append(_report(run, content))
            archive = str(content["archive"])
        except FileNotFoundError:
            continue  # cleared away just now
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            unread.append(run.name)
    return Shelf(archive, tuple(told), max(len(runs) - _NIGHTS, 0), tuple(unread)) if told or unread else None


def _report(run: Path, content: dict[str, Any]) -> Report:
    """Raises KeyError, TypeError or ValueError where it is not what a report of this schema says."""
    if content["schema"] != SCHEMA or content["verdict"] not in WORDS:
        raise ValueError("of another schema")
    made = run.name[:8]
    effects = tuple(
        (str(one["from"]), float(one["age_effect"])) for one in content["windows"] if one["age_effect"] is not None
    )
    night = content["window"]["from"] or f"{made[:4]}-{made[4:6]}-{made[6:]}"
    where = "/".join(quote(part) for part in (run.parent.name, run.name, NAME))
    return Report(where, str(night), run.name, content["verdict"], str(content["headline"]), content["cause"],
                  content["since"], effects)  # fmt: skip


def _trend(told: Report) -> Markup | None:
    shown = [(day, effect) for day, effect in told.effects[-90:] if math.isfinite(effect)]
    if len(shown) < 2:
        return None
    values = [effect for _, effect in shown]
    across = svg.Scale(0, len(shown) - 1, 4, svg.WIDTH - 4)
    down = svg.Scale(min(-1.0, *values), max(1.0, *values), _HEIGHT - 4, 4)
    places = [(across(number), down(value)) for number, value in enumerate(values)]
    is_bad = told.answer == "drift"
    began = told.since if is_bad else None
    shapes = [svg.line(0, down(0), svg.WIDTH, down(0), "zero"), svg.path(places, "course")]
    if began is not None and (after := [place for place, (day, _) in zip(places, shown, strict=True) if day >= began]):
        shapes.insert(0, svg.box(after[0][0], 0, svg.WIDTH - after[0][0], _HEIGHT, "since"))
    shapes.append(svg.dot(*places[-1], "bad" if is_bad else "now", 4))
    span = f"{len(shown)} nights from {shown[0][0]} to {shown[-1][0]}"
    said = f"{span}; the last lies {values[-1]:+.1f} years from what was accepted."
    return svg.frame(told.link, _HEIGHT, "Mean age by night", said, shapes)
