"""Files and archives that are gone: marked, an alarm of their own, back again, moved, or erased."""

import errno
import json
import os
import subprocess
import sys
import unicodedata
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from models import tiny_model
from pictures import encoded
from PIL import Image
from rows import row, writer

from agewatch.errors import GoneError, TableError, UsageError
from agewatch.exports.export import export
from agewatch.scoring import archives, baseline, beside, predictions
from agewatch.scoring.predictions import Key, latest_mode
from agewatch.scoring.score import Limits, Summary, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.scoring.writer import Writer

AGEWATCH = Path(sys.executable).with_name("agewatch")
FILES = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "town"
    made.mkdir()
    for number in range(FILES):
        picture(made / f"{number:02}.png", number)
    return made


def picture(path: Path, number: int) -> None:
    path.write_bytes(encoded(Image.new("RGB", (40, 40), (number * 9, 0, 0))))


@pytest.fixture
def run(folder: Path, tmp_path: Path, model_folder: Path, cache: Path) -> Any:
    def score(**changed: Any) -> Summary:
        options = {"model_path": model_folder, "table": tmp_path / "table", "how": Execution(cache, 1), "mode": "crop"}
        return score_archive(changed.pop("root", folder), **(options | changed))

    return score


@pytest.fixture
def gone(tmp_path: Path) -> Any:
    """The paths that are marked as gone, of all models and modes: each in all its rows, or in none."""

    def read() -> set[str]:
        rows = predictions.read(tmp_path / "table").to_pylist()
        marked = {each["path"] for each in rows if each["gone_at"] is not None}
        assert not marked & {each["path"] for each in rows if each["gone_at"] is None}
        return marked

    return read


def exported(tmp_path: Path, run: Summary, **options: Any) -> int:
    return export(tmp_path / "table", tmp_path / "rows.csv", format="csv", model=run.model, **options)


def test_a_file_that_is_gone_is_marked_left_out_of_exports_and_back_when_it_is_back(
    run: Any, gone: Any, folder: Path, tmp_path: Path
) -> None:
    run()
    run(model_path=tiny_model(tmp_path / "other", seed=1))
    before = datetime.now(UTC)
    (folder / "03.png").rename(tmp_path / "aside.png")
    summary = run()
    assert (summary.exit_code, summary.lost, summary.disappeared_paths) == (0, 1, ["03.png"])
    assert gone() == {"03.png"}
    marked = predictions.read(tmp_path / "table", pc.is_valid(pc.field("gone_at")))["gone_at"].to_pylist()
    assert len(marked) == 2
    assert all(time >= before for time in marked)
    assert (exported(tmp_path, summary), exported(tmp_path, summary, with_gone=True)) == (FILES - 1, FILES)
    again = run()
    assert (again.lost, again.disappeared) == (0, 1), "it was lost once, and is still away"
    (tmp_path / "aside.png").rename(folder / "03.png")
    summary = run()
    assert (summary.disappeared, gone()) == (0, set())
    assert exported(tmp_path, summary) == FILES


def test_a_file_that_is_back_with_another_content_is_not_gone(run: Any, gone: Any, folder: Path) -> None:
    run()
    (folder / "03.png").unlink()
    run()
    picture(folder / "03.png", 27)
    assert run().scored == 1
    assert gone() == set()


@pytest.mark.parametrize(
    ("left", "limits", "code"), [(14, Limits(), 6), (14, Limits(gone=1), 0), (0, Limits(gone=1), 6)]
)
def test_many_lost_files_are_an_alarm_and_nothing_is_marked(
    left: int, limits: Limits, code: int, run: Any, gone: Any, folder: Path
) -> None:
    run()
    paths = sorted(folder.iterdir())
    for path in paths[left:]:
        path.unlink()
    if left:
        picture(folder / "new.png", 27)
    summary = run(limits=limits)
    assert (summary.exit_code, summary.lost, summary.faces) == (code, FILES - left, left + (1 if left else 0))
    assert gone() == (set() if code else {path.name for path in paths[left:]})
    assert (summary.problem is None) == (code == 0)
    if code:
        assert f"{FILES - left} files" in summary.problem
        assert ("--max-gone 1" if left else "archives remove town") in summary.problem
        assert run(limits=limits).exit_code == code, "the alarm goes on while they are away"


@pytest.mark.parametrize("left", [0, 1])
def test_a_new_model_or_mode_does_not_hide_that_an_archive_is_empty(
    left: int, run: Any, gone: Any, folder: Path
) -> None:
    run()
    for path in sorted(folder.iterdir())[left:]:
        path.unlink()
    assert run(mode="detect").exit_code == 6
    assert gone() == set()


def test_new_files_do_not_dilute_what_was_lost(run: Any, gone: Any, folder: Path) -> None:
    run()
    for path in sorted(folder.iterdir())[:6]:
        path.unlink()
    for number in range(FILES):
        picture(folder / f"new{number}.png", number + 3)
    assert (run().exit_code, gone()) == (6, set())


def test_what_is_excluded_from_now_on_is_marked_and_no_alarm(run: Any, gone: Any, folder: Path) -> None:
    for number in range(9):
        (folder / "#recycle2").mkdir(exist_ok=True)
        picture(folder / "#recycle2" / f"{number}.png", number)
    run()
    summary = run(exclude=["#recycle2/"])  # a line of .gitignore: # begins a comment only where it stands first
    assert summary.exit_code == 0
    summary = run(exclude=["\\#recycle2/"])
    assert (summary.exit_code, summary.lost) == (0, 0)
    assert gone() == {f"#recycle2/{number}.png" for number in range(9)}
    assert run().disappeared == 0
    assert gone() == set()


def test_a_file_that_is_back_under_a_new_model_is_back_for_all(
    run: Any, gone: Any, folder: Path, tmp_path: Path
) -> None:
    run()
    (folder / "03.png").rename(tmp_path / "aside.png")
    run()
    assert gone() == {"03.png"}
    (tmp_path / "aside.png").rename(folder / "03.png")
    run(model_path=tiny_model(tmp_path / "other", seed=1))
    assert gone() == set()


def test_a_folder_that_is_missing_is_gone_only_where_the_table_knows_it(run: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        run(root=tmp_path / "elsewhere")
    run()
    folder.rename(tmp_path / "moved")
    with pytest.raises(GoneError, match=r"'town' is gone.*agewatch archives move town FOLDER"):
        run()
    assert len(predictions.read(tmp_path / "table")) == FILES


def test_a_moved_archive_is_bound_to_its_name_again(run: Any, gone: Any, folder: Path, tmp_path: Path) -> None:
    run()
    moved = folder.rename(tmp_path / "village")
    with pytest.raises(UsageError, match=rf"`agewatch archives move town {moved}`, else .* --archive NAME\.$"):
        run(root=moved, name="town")
    assert archives.move(tmp_path / "table", "town", moved).root == str(moved)
    summary = run(root=moved, name="town")
    assert (summary.skipped, summary.lost, gone()) == (FILES, 0, set())


def test_files_below_a_folder_that_cannot_be_listed_are_not_gone(
    run: Any, gone: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deep").mkdir()
    picture(folder / "deep" / "a.png", 27)
    run()
    (folder / "03.png").unlink()
    scandir = os.scandir

    def blind(place: Any) -> Any:
        if os.fsencode(place).endswith(b"/deep"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", blind)
    summary = run()
    assert (summary.exit_code, summary.lost, gone()) == (1, 1, {"03.png"})
    assert summary.problem == "A folder can't be listed; what is in there is not counted."


def test_an_archive_is_erased_with_all_traces_and_the_others_stay(tmp_path: Path) -> None:
    writer(tmp_path, tmp_path / "secret", archive="secret").write([row("hidden.jpg", archive="secret", age=31)])
    others = writer(tmp_path, tmp_path / "b", archive="b")
    others.write([row("x.jpg", archive="b", age=1)])
    others.write([row("x.jpg", archive="b", age=2)])
    del others
    reports = tmp_path / "reports" / "secret"
    reports.mkdir(parents=True)
    for name in ("secret", "b"):
        baseline.accept(tmp_path / "table", name, date(2026, 1, 1), date(2026, 1, 2))
        beside.folder_of(tmp_path / "table", name).mkdir(parents=True)
        (beside.folder_of(tmp_path / "table", name) / "canaries.json").write_text(
            "hidden" if name == "secret" else "kept"
        )
    assert archives.remove(tmp_path / "table", "secret", reports).files == 1
    assert [entry.name for entry in archives.entries(tmp_path / "table")] == ["b"]
    assert predictions.read(tmp_path / "table")["age"].to_pylist() == [2]
    assert not reports.exists()
    assert [told.until for told in baseline.accepted(tmp_path / "table", "b")] == [date(2026, 1, 2)]
    assert (beside.folder_of(tmp_path / "table", "b") / "canaries.json").is_file()
    assert not beside.folder_of(tmp_path / "table", "secret").exists()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"secret" in path.read_bytes() or b"hidden" in path.read_bytes()]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    with pytest.raises(UsageError, match="no archive 'secret'"):
        archives.remove(tmp_path / "table", "secret", reports)
    writer(tmp_path, tmp_path / "b", archive="b").write([row("y.jpg", archive="b")])


def test_a_table_in_use_is_not_made_anew_and_one_behind_a_link_is(tmp_path: Path) -> None:
    using = writer(tmp_path, tmp_path / "secret", archive="secret")
    using.write([row("hidden.jpg", archive="secret")])
    with pytest.raises(TableError, match="Another run uses"):
        archives.remove(tmp_path / "table", "secret", tmp_path / "reports")
    del using
    (tmp_path / "table").rename(tmp_path / "disk")
    (tmp_path / "table").symlink_to("disk")
    archives.remove(tmp_path / "table", "secret", tmp_path / "reports")
    assert (tmp_path / "table").is_symlink()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]


def test_an_interrupted_removal_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer(tmp_path, tmp_path / "secret", archive="secret").write([row("hidden.jpg", archive="secret")])
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if "-fresh-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archives.remove(tmp_path / "table", "secret", tmp_path / "reports")
    assert len(predictions.read(tmp_path / "table")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_an_accented_name_is_one_name_however_it_is_written(run: Any, folder: Path, tmp_path: Path) -> None:
    apart, composed = unicodedata.normalize("NFD", "Köln"), unicodedata.normalize("NFC", "Köln")
    assert apart != composed
    decomposed = folder.rename(folder.with_name(apart))
    assert run(root=decomposed).archive == composed
    assert run(root=decomposed, name=apart).skipped == FILES
    assert predictions.known_name(tmp_path / "table", apart) == composed
    summary = run(root=decomposed)
    assert exported(tmp_path, summary, archive=apart) == FILES


def test_a_name_that_an_older_table_holds_apart_is_found(tmp_path: Path) -> None:
    apart, composed = unicodedata.normalize("NFD", "Köln"), unicodedata.normalize("NFC", "Köln")
    writer(tmp_path, tmp_path, archive=apart)
    assert predictions.known_name(tmp_path / "table", composed) == apart


def test_the_latest_mode_is_the_one_committed_last_whatever_the_clocks_said(tmp_path: Path) -> None:
    future = datetime(2050, 1, 1, tzinfo=UTC)
    for mode, time in (("detect", future), ("crop", datetime(2026, 1, 1, tzinfo=UTC))):
        table = Writer(tmp_path / "table", Key("a", "m-1@0", mode), root=tmp_path)  # type: ignore[arg-type]
        table.write([row("x.jpg", mode=mode, scored_at=time)])
    assert latest_mode(tmp_path / "table", archive="a", model="m-1@0") == "crop"
    assert latest_mode(tmp_path / "table", archive="a", model="other") is None


def test_a_file_changed_with_its_size_and_date_kept_is_noticed(run: Any, folder: Path, tmp_path: Path) -> None:
    """Rewritten within a second by a program that sets the old date, as copies by FAT's clock do."""
    run()
    path = folder / "03.png"
    stat = path.stat()
    before = path.read_bytes()
    path.write_bytes(before[:-20] + bytes(20))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run().scored == 1
    [found] = predictions.read(tmp_path / "table", pc.field("path") == "03.png").to_pylist()
    assert found["status"] == "unreadable"
    assert run().scored == 0


def test_the_command_line_lists_moves_and_removes(home: Path, folder: Path, tmp_path: Path, model_folder: Path) -> None:
    def agewatch(*arguments: object) -> tuple[int, Any, str]:
        done = subprocess.run([AGEWATCH, *map(str, arguments), "--json"], capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout), done.stderr

    score = ("score", folder, "--faces", "crop", "--model", model_folder, "--workers", 1)
    assert agewatch(*score)[0] == 0
    assert agewatch("archives")[1] == {"archives": [{"name": "town", "root": str(folder), "files": FILES, "gone": 0}]}
    moved = folder.rename(tmp_path / "village")
    code, failed, _ = agewatch(*score)
    assert (code, failed["error"]["code"]) == (6, "gone")
    assert agewatch("archives", "move", "town", moved)[0] == 0
    score = ("score", moved, "--archive", "town", *score[2:])
    assert agewatch(*score)[1]["skipped"] == FILES
    for path in sorted(moved.iterdir())[:10]:
        path.unlink()
    code, summary, _ = agewatch(*score)
    assert (code, summary["lost"]) == (6, 10)
    assert "10 files are gone" in summary["problem"]
    assert agewatch(*score, "--max-gone", 0.5)[0] == 0
    assert agewatch("archives")[1]["archives"][0]["gone"] == 10
    assert agewatch("archives", "remove", "town")[1]["files"] == FILES
    assert agewatch("archives")[1] == {"archives": []}
    assert agewatch("archives", "remove", "town")[0] == 2
