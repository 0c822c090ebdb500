"""A gallery shows every face with its age, offline, and what it holds stays in its own folder."""

import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_core_python import sync_playwright
from browser import open_page
from pictures import ASTRONAUT, encoded
from PIL import Image
from rows import row, writer

from agewatch.errors import TableError, UsageError
from agewatch.gallery import choose, page
from agewatch.gallery.page import Gallery
from agewatch.scoring import archives, predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import Execution
from agewatch.scoring.writer import Writer

KEY = Key("a", "m-1@0", "detect")
ODD = "<b>/<script>alert(1)<script>\"'&, ünd\\.png"
ARABIC = "صور/وجه.jpg"
AXE = Path(sync_playwright.__file__).with_name("axe.min.js")


def scored(root: Path, path: str, data: bytes, age: float = 30.0, **changed: Any) -> dict[str, Any]:
    """Write a picture, and say what a run would have: by default that the whole of it is a face."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    width, height = Image.open(file).size
    told = {
        "content_hash": blake2b(data, digest_size=32).hexdigest(), "bytes": len(data), "width": width, "height": height,
        "box_x": 0.0, "box_y": 0.0, "box_w": float(width), "box_h": float(height), "age": age, "age_low": age - 9,
        "age_high": age + 10,
    }  # fmt: skip
    return row(path.replace("\\", "\\\\"), **told | changed)


def faceless(root: Path, path: str, data: bytes) -> dict[str, Any]:
    """Write a picture in which no face was found."""
    nothing = dict.fromkeys(("face", "age", "age_low", "age_high", "box_x", "box_y", "box_w", "box_h"))
    return scored(root, path, data, status="no_face") | nothing


def plain(colour: tuple[int, int, int]) -> bytes:
    return encoded(Image.new("RGB", (60, 60), colour))


@pytest.fixture
def root(tmp_path: Path, home: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def gallery(tmp_path: Path, out: str = "out", keys: tuple[Key, ...] = (KEY,), **options: Any) -> Gallery:
    how = Execution(tmp_path / "cache", workers=1)
    return page.make(tmp_path / "table", list(keys), tmp_path / out, how, **options)


def shown(made: Gallery) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the page's script is given: all of it, and the rows by path."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', made.page.read_text(), re.DOTALL)
    assert found
    data = json.loads(found[1])
    return data, {told[0]: told for told in data["rows"]}


def cell_of(made: Gallery, cell: int) -> np.ndarray[Any, Any]:
    """The pixels of one face on its sheet."""
    data, _ = shown(made)
    sheet, place = divmod(cell, data["across"] ** 2)
    pixels = np.asarray(Image.open(made.page.parent / data["sheets"] / f"{sheet}.jpg"))
    top, left = (data["side"] * which for which in divmod(place, data["across"]))
    cut: np.ndarray[Any, Any] = pixels[top : top + data["side"], left : left + data["side"]]
    return cut


def test_a_browser_shows_it_offline_filters_it_and_no_reader_is_shut_out(root: Path, tmp_path: Path) -> None:
    astronaut = ASTRONAUT.read_bytes()
    box = {"box_x": 180.0, "box_y": 60.0, "box_w": 90.0, "box_h": 115.0, "face_score": 0.9}
    error = "The data end early <b>here</b>."
    writer(tmp_path, root).write(
        [
            scored(root, ODD, astronaut, 41.4, **box),
            scored(root, ARABIC, encoded(Image.open(ASTRONAUT).rotate(5), "JPEG"), 22.5, **box),
            faceless(root, "grey.png", plain((9, 9, 9))),
            row("torn.jpg", face=None, age=None, status="truncated", error=error),
        ]
    )
    made = gallery(tmp_path)
    assert (made.faces, made.faceless, made.refused, made.lost) == (2, 1, 1, 0)
    used = f"""(() => {{
      if (!document.querySelector("li")) return false;
      if (!window.filtered) {{
        const set = (id, value) => {{
          document.getElementById(id).value = value;
          document.forms[0].dispatchEvent(new Event("change"));
        }};
        const names = () => [...document.querySelectorAll("li .name")].map((one) => one.textContent);
        window.filtered = [];
        for (const [id, value] of [["from", "30"], ["path", "صور"], ["status", "truncated"]]) {{
          set(id, value); window.filtered.push(names()); set(id, "");
        }}
        {AXE.read_text()};
        axe.run().then((found) => {{ window.barriers = found.violations.map((one) => one.id); }});
      }}
      if (!window.barriers) return false;
      document.body.append(JSON.stringify({{filtered: window.filtered, barriers: window.barriers}}));
      return true;
    }})()"""
    seen = open_page(made.page, tmp_path / "profile", tmp_path / "page.png", drawn=used)
    assert seen.problems == []
    assert {Path(request).parent.name for request in seen.requests} <= {"out", shown(made)[0]["sheets"]}
    told = json.loads(seen.text[seen.text.rindex('{"filtered"') :])
    odd = ODD.split("/", 1)[1].replace("\\", "\\\\")
    assert told == {"filtered": [[odd], ["وجه.jpg"], ["torn.jpg"]], "barriers": []}
    for words in ("41", "(32 to 51)", "<b>", odd, error, "no face found", "estimates", "4 of 4 shown"):
        assert words in seen.text
    assert "<script>alert" not in made.page.read_text()
    assert np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3).std(axis=0).max() > 10


def test_each_face_stands_in_its_place_and_what_is_gone_or_changed_says_so(root: Path, tmp_path: Path) -> None:
    colours = {f"{number:02}.png": (number * 3, 255 - number * 3, number % 5 * 60) for number in range(70)}
    rows = [scored(root, name, plain(colour), 90.0 - n) for n, (name, colour) in enumerate(colours.items())]
    writer(tmp_path, root).write(rows)
    (root / "03.png").unlink()
    (root / "04.png").write_bytes(plain((1, 2, 3)))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    command = [sys.executable, "-m", "agewatch", "gallery", root, "--all-models", "--sort", "age", "--json"]
    places = ["--predictions", tmp_path / "table", "--out", tmp_path / "out", "--workers", "1"]
    answered = subprocess.run([*command, *places], capture_output=True, text=True, check=True)
    told = json.loads(answered.stdout)
    made = Gallery(**told | {"page": Path(told["page"])})
    assert (made.faces, made.of, made.lost) == (70, 70, 2)
    data, found = shown(made)
    assert [told[0] for told in data["rows"]] == sorted(colours, reverse=True)
    assert len(list((made.page.parent / data["sheets"]).iterdir())) == 2
    for name, (_, face, status, model, cell, why, age, low, high) in found.items():
        assert (face, status, model, low, high) == (0, "ok", 0, age - 9, age + 10)
        if name in ("03.png", "04.png"):
            assert why in ("The file disappeared before it could be read.", "The file holds another picture now.")
        else:
            assert why is None
            assert np.abs(cell_of(made, cell).mean(axis=(0, 1)) - colours[name]).max() < 12
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - set(before)
    assert {path.parts[0] for path in after} == {"out"}
    assert {path.stat().st_mode & 0o777 for path in made.page.parent.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (made.page.parent, *made.page.parent.glob("*/"))} == {0o700}


BREAKS = """
import os, signal, PIL.Image
opened = PIL.Image.open
def breaks(*arguments, **named):
    image = opened(*arguments, **named)
    if image.size == (65, 64):
        os.kill(os.getpid(), signal.SIGSEGV)
    return image
PIL.Image.open = breaks
"""


def test_a_picture_that_crashes_its_decoder_costs_only_its_own_faces(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = encoded(Image.new("RGB", (65, 64), "white"))
    rows = [scored(root, "bad.png", bad, face=face, box_x=float(face)) for face in (0, 1)]
    writer(tmp_path, root).write([*rows, *(scored(root, f"{n}.png", plain((n, n, n))) for n in range(5))])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    made = gallery(tmp_path)
    assert (made.faces, made.lost) == (7, 2)
    why = {told[5] for told in shown(made)[0]["rows"]}
    assert why == {None, "The process that drew the picture crashed."}


KILLED = """
import os, signal
from pathlib import Path
from agewatch.gallery import page, sheets
from agewatch.scoring import archives, predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import Execution

def draw(rows, root, folder, how):
    (folder / "0.jpg").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

sheets.draw = draw
page.make(Path({table!r}), [Key("a", "m-1@0", "detect")], Path({out!r}), Execution(Path({cache!r}), workers=1))
"""


def test_a_folder_of_others_or_in_the_archive_is_refused_and_a_killed_run_is_made_up_for(
    root: Path, tmp_path: Path
) -> None:
    writer(tmp_path, root).write([scored(root, f"{n}.png", plain((n, n, n))) for n in range(3)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="other things than a gallery"):
        gallery(tmp_path, "full")
    with pytest.raises(UsageError, match="lies in an archive"):
        gallery(tmp_path, "pictures/new")
    assert [path.name for path in root.iterdir() if path.is_dir()] == []
    first = gallery(tmp_path)
    whole = first.page.read_bytes()
    script = KILLED.format(table=str(tmp_path / "table"), out=str(tmp_path / "out"), cache=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert first.page.read_bytes() == whole
    assert len(list((tmp_path / "out").glob("sheets-*"))) == 2
    again = gallery(tmp_path)
    assert [path.name for path in (tmp_path / "out").glob("sheets-*")] == [shown(again)[0]["sheets"]]


def test_only_the_first_of_too_many_are_shown_the_gone_where_asked_for_and_all_go_with_the_archive(
    root: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [scored(root, f"{n}.png", plain((n, n, n)), 20.0 + n, age_high=40.0 + n * n) for n in range(9)]
    table = writer(tmp_path, root)
    table.write(rows)
    table.mark(["8.png"], datetime(2026, 3, 4, tzinfo=UTC))
    del table  # which it holds
    monkeypatch.setattr(choose, "MOST_FACES", 4)
    made = gallery(tmp_path, str(page.default_folder("a")), sort="uncertainty")
    assert (made.faces, made.of) == (4, 8)
    assert list(shown(made)[1]) == ["7.png", "6.png", "5.png", "4.png"]
    assert "Of 8 faces, 4 are shown: those with the widest interval." in made.page.read_text()
    with_gone = KEY.where & choose.where_status([], True)
    everything = predictions.read(tmp_path / "table", with_gone, choose.COLUMNS)
    assert choose.choose(everything, "uncertainty").rows[0]["path"] == "8.png"
    assert made.page.is_relative_to(home)
    archives.remove(tmp_path / "table", "a", home / "none", page.default_folder("a"))
    assert list((home / "galleries").iterdir()) == []


def test_two_models_stand_side_by_side_where_they_differ_most(root: Path, tmp_path: Path) -> None:
    rows = [scored(root, f"{n}.png", plain((n, n, n)), 30.0) for n in range(4)]
    writer(tmp_path, root).write([*rows, scored(root, "ours.png", plain((99, 9, 9)))])
    second = Key("a", "m-2@0", "detect")
    theirs = [one | {"model": second.model, "age": 30.0 + by} for one, by in zip(rows, (1, -8, 3, 0), strict=True)]
    elsewhere = theirs[3] | {"box_x": 59.0, "box_w": 1.0}
    Writer(tmp_path / "table", second, root=root).write([*theirs[:3], elsewhere])
    assert choose.keys_of(tmp_path / "table", str(root), KEY.model, second.model) == [KEY, second]
    with pytest.raises(UsageError, match="m-9 to compare with; it has m-1@0, m-2@0"):
        choose.keys_of(tmp_path / "table", "a", KEY.model, "m-9")
    compared = gallery(tmp_path, keys=(KEY, second), compare=True, sort="difference")
    data, _ = shown(compared)
    assert [(told[0], told[6], told[9]) for told in data["rows"]] == [
        ("1.png", 30.0, 22.0), ("2.png", 30.0, 33.0), ("0.png", 30.0, 31.0),
    ]  # fmt: skip
    both = gallery(tmp_path, "both", keys=(KEY, second))
    rows_of_both = shown(both)[0]["rows"]
    assert len(rows_of_both) == 9
    assert len({told[4] for told in rows_of_both}) == 6  # one face of two models is drawn once
    with pytest.raises(TableError, match="nothing to show"):
        gallery(tmp_path, "none", statuses=["no_face"])
