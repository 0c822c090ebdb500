import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from conftest import EXPECTED
from models import tiny_model
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch.errors import AgewatchError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.progress import unwatched
from agewatch.scoring import predictions
from agewatch.scoring.score import Limits, Summary, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.sources import ahead, door
from agewatch.sources.folder import Folder


@pytest.fixture
def run(archive: Path, tmp_path: Path, model_folder: Path, cache: Path) -> Any:
    def score(**changed: Any) -> Summary:
        how = Execution(cache, changed.pop("workers", 2), progress=changed.pop("progress", unwatched))
        options = {"model_path": model_folder, "table": tmp_path / "table", "how": how}
        return score_archive(changed.pop("root", archive), **(options | changed))

    return score


def rows(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in predictions.read(tmp_path / "table").to_pylist():
        found.setdefault(row["path"], []).append(row)
    return found


def test_every_file_gets_its_row(run: Any, archive: Path, tmp_path: Path, model_folder: Path) -> None:
    summary = run()
    found = rows(tmp_path)
    assert {path: [row["status"] for row in of_file] for path, of_file in found.items()} == {
        path: [status] for path, status in EXPECTED.items()
    }
    [face] = found["face.png"]
    assert face["face"] == 0
    assert (face["width"], face["height"]) == (512, 512)
    assert face["age_low"] <= face["age"] <= face["age_high"]
    assert face["bytes"] == (archive / "face.png").stat().st_size
    assert face["model"] == AgeModel.load(model_folder).id
    assert (face["archive"], face["mode"], face["engine"]) == ("archive", "detect", "openvino-f32")
    [turned] = found["deep/turned.JPG"]
    assert turned["box_x"] == pytest.approx(face["box_x"], abs=10)  # upright again
    assert turned["box_y"] == pytest.approx(face["box_y"], abs=10)
    [grey] = found["deep/er/grey"]
    assert (grey["face"], grey["age"], grey["width"]) == (None, None, 300)
    for path in ("torn.jpg", "text.jpg", "empty.jpg"):
        [refused] = found[path]
        assert refused["error"].endswith(".")
        assert refused["content_hash"]
    assert (summary.found, summary.ignored, summary.scored, summary.skipped) == (6, 1, 6, 0)
    assert (summary.faces, summary.no_face) == (2, 1)
    assert summary.refused == {"empty": 1, "truncated": 1, "unsupported": 1}
    assert summary.exit_code == 3


def test_the_failure_budget_decides_the_exit_code(run: Any) -> None:
    assert run(limits=Limits(0.5)).exit_code == 0
    assert run(limits=Limits(0.49)).exit_code == 3


def test_a_second_run_scores_nothing_and_loads_no_network(
    run: Any, archive: Path, tmp_path: Path, model_folder: Path, cache: Path
) -> None:
    run()
    before = rows(tmp_path)
    code = """
import sys, json
from pathlib import Path
from threading import Thread
from agewatch.scoring.score import Limits, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.sources import door
root, model, table, cache = map(Path, sys.argv[1:])
summary = score_archive(root, model_path=model, table=table, how=Execution(cache))
loaded = [name for name in ("torch", "timm", "openvino") if name in sys.modules]
print(json.dumps([summary.scored, summary.skipped, summary.refused, loaded]))
"""
    command = [sys.executable, "-c", code, str(archive), str(model_folder), str(tmp_path / "table"), str(cache)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    refused = {"empty": 1, "truncated": 1, "unsupported": 1}
    assert json.loads(answer.stdout) == [0, 6, refused, []]
    assert rows(tmp_path) == before


def test_a_second_run_opens_no_picture(tmp_path: Path, model_folder: Path, cache: Path) -> None:
    folder = many(tmp_path / "many", 200)
    code = """
import json, os, sys
from pathlib import Path
from threading import Thread
from agewatch.scoring.score import Limits, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.sources import door
root, model, table, cache = map(Path, sys.argv[1:])
opened = []

def note(event, found):
    if event == "open" and isinstance(found[0], (str, bytes)):
        opened.append(os.fsdecode(found[0]))

sys.addaudithook(note)
if __name__ == "__main__":
    summary = score_archive(root, model_path=model, table=table, how=Execution(cache, 1), mode="crop")
    below = sum(path.startswith(f"{root}/") for path in opened)
    (root / "000.png").read_bytes()
    seen = sum(path.startswith(f"{root}/") for path in opened) - below
    print(json.dumps([summary.scored, summary.skipped, below, seen]))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(folder), str(model_folder), str(tmp_path / "table"), str(cache)]
    told = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2)]
    assert told[0][:2] == [200, 0]
    assert told[1] == [0, 200, 0, 1]  # the last: the hook does see what is opened


def test_only_what_changed_is_scored_again(run: Any, archive: Path, tmp_path: Path) -> None:
    run()
    before = rows(tmp_path)
    os.utime(archive / "face.png", ns=(1, 1))  # touched, not changed
    (archive / "torn.jpg").write_bytes(encoded(Image.new("RGB", (50, 50), "white"), "JPEG"))  # mended
    (archive / "new.png").write_bytes(encoded(Image.new("RGB", (50, 50), "black")))
    (archive / "text.jpg").unlink()
    summary = run()
    assert (summary.scored, summary.skipped, summary.disappeared) == (3, 3, 1)
    after = rows(tmp_path)
    assert after["torn.jpg"][0]["status"] == "no_face"
    assert after["new.png"][0]["status"] == "no_face"
    changed = {"mtime_ns": 1, "ctime_ns": (archive / "face.png").stat().st_ctime_ns}
    assert after["face.png"] == [before["face.png"][0] | changed]
    assert after["empty.jpg"] == before["empty.jpg"]
    assert run().scored == 0


def test_rescore_and_another_model_or_mode_score_everything(run: Any, tmp_path: Path) -> None:
    first = run()
    assert run(again="all").scored == first.found
    assert len(rows(tmp_path)["face.png"]) == 1
    other = run(model_path=tiny_model(tmp_path / "other", seed=1))
    assert other.scored == first.found
    assert len(rows(tmp_path)["face.png"]) == 2
    crop = run(mode="crop")
    assert crop.scored == first.found
    [row] = [row for row in rows(tmp_path)["deep/er/grey"] if row["mode"] == "crop"]
    assert (row["status"], row["face"], row["face_score"]) == ("ok", 0, None)
    assert (row["box_x"], row["box_y"], row["box_w"], row["box_h"]) == (0, 0, 300, 200)


def test_many_shards_and_faces_keep_each_row_with_its_file(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        colour = Image.new("RGB", (32 + number, 32), (number * 6, 0, 0))
        (folder / f"{number:02}.png").write_bytes(encoded(colour))
    summary = run(root=folder, mode="crop")
    assert summary.faces == 40
    for path, [row] in rows(tmp_path).items():
        assert row["width"] == 32 + int(path[:2])
        assert row["brightness"] == pytest.approx(int(path[:2]) * 6 * 0.299 / 255, abs=0.005)


def test_progress_counts_up_to_all_files(run: Any) -> None:
    seen: list[tuple[int, int]] = []
    run(progress=lambda done, total, _counts: seen.append((done, total)))
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)


def test_shards_start_before_a_slow_listing_ends(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scored = many(tmp_path / "many", 60), Event()
    walk, totals = Folder.walk, list[int]()

    def slowly(self: Folder, sieve: Any) -> Any:
        for number, file in enumerate(walk(self, sieve)):
            assert number != 40 or scored.wait(120), "nothing is scored before all is listed"
            yield file

    def progress(done: int, total: int, _counts: Any) -> None:
        totals.append(total)
        if done:
            scored.set()

    monkeypatch.setattr(Folder, "walk", slowly)
    monkeypatch.setattr(ahead, "_SECONDS", 0.0)
    summary = run(root=folder, mode="crop", progress=progress)
    assert (summary.found, summary.scored, summary.faces) == (60, 60, 60)
    assert totals == sorted(totals)
    assert totals[0] < 60 == totals[-1]


def test_a_listing_that_fails_on_its_way_ends_the_run_and_what_was_scored_stays(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, scored = Folder.walk, Event()

    def fails(self: Folder, sieve: Any) -> Any:
        yield from walk(self, sieve)
        scored.wait(120)
        raise AgewatchError("The rest can't be listed.")

    monkeypatch.setattr(Folder, "walk", fails)
    monkeypatch.setattr(ahead, "_SECONDS", 0.0)
    with pytest.raises(AgewatchError, match="The rest"):
        run(root=many(tmp_path / "many", 60), mode="crop", progress=lambda done, *_: done and scored.set())
    assert 16 <= len(rows(tmp_path)) < 60


def test_wrong_usage_is_said_before_anything_is_written(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        run(root=tmp_path / "missing")
    with pytest.raises(UsageError, match="name"):
        run(name="a/b")
    assert not (tmp_path / "table").exists()


def test_copied_and_moved_files_get_rows_without_running_the_network(run: Any, archive: Path, tmp_path: Path) -> None:
    run()
    before = rows(tmp_path)
    (archive / "copy.png").write_bytes((archive / "face.png").read_bytes())
    (archive / "deep" / "turned.JPG").rename(archive / "moved.JPG")
    # Another picture at a known path is no copy, whatever its time says.
    (archive / "deep" / "er" / "grey").write_bytes(encoded(Image.new("RGB", (310, 200), "grey")))
    summary = run()
    after = rows(tmp_path)
    assert (summary.scored, summary.disappeared_paths) == (3, ["deep/turned.JPG"])
    for new, old in (("copy.png", "face.png"), ("moved.JPG", "deep/turned.JPG")):
        [row], [known] = after[new], before[old]
        of_the_file = {name: row[name] for name in ("scored_at", "mtime_ns", "ctime_ns")}
        assert row == known | of_the_file | {"path": new, "run_id": summary.run_id}
        assert row["scored_at"] > known["scored_at"]
    assert after["deep/er/grey"][0]["width"] == 310
    assert after["face.png"] == before["face.png"]


def test_equal_files_in_one_run_get_equal_rows(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encoded(Image.new("RGB", (300, 200), "grey")))
        (folder / f"face-{name}").write_bytes(ASTRONAUT.read_bytes())
    summary = run(root=folder, workers=1)
    assert (summary.faces, summary.no_face) == (2, 2)
    found = rows(tmp_path)
    assert found["face-a.png"][0]["age"] == found["face-b.png"][0]["age"]
    assert all(len(of_file) == 1 for of_file in found.values())


def test_the_refused_can_be_tried_again_alone(run: Any) -> None:
    run()
    again = run(again="refused")
    assert (again.scored, again.skipped) == (3, 3)


def kill_workers(parent: int) -> None:
    for child in psutil.Process(parent).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(encoded(Image.new("RGB", (64, 64), (number, 0, 0))))
    return folder


def test_workers_that_are_killed_lose_nothing(run: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(done: int, total: int, _counts: Any) -> None:
        if 0 < done < total and not killed:
            killed.append(done)
            kill_workers(os.getpid())

    summary = run(root=many(tmp_path / "many", 120), mode="crop", progress=kill_once)
    assert killed
    assert (summary.found, summary.faces, summary.refused) == (120, 120, {})
    assert all(len(of_file) == 1 for of_file in rows(tmp_path).values())


def test_a_worker_that_is_killed_while_it_starts_is_replaced(run: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_first() -> None:
        while not killed:
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if not killed and any("spawn_main" in word for word in child.cmdline()):
                        child.kill()
                        killed.append(child.pid)

    thread = Thread(target=kill_first, daemon=True)
    thread.start()
    summary = run(root=many(tmp_path / "many", 20), mode="crop")
    thread.join()
    assert (summary.found, summary.faces, summary.refused) == (20, 20, {})


BREAKS = """
import os, signal, time
import PIL.Image
opened = PIL.Image.open
def breaks(*arguments, **options):
    image = opened(*arguments, **options)
    if image.size == (65, 64):
        {does}
    return image
PIL.Image.open = breaks
"""
SCRIPT = """
import json, sys
from pathlib import Path
from threading import Thread
from agewatch.scoring import pool, score
from agewatch.scoring.scorer import Execution
from agewatch.sources import door
if __name__ == "__main__":
    pool.ITEM_SECONDS = 4
    root, model, table, cache = map(Path, sys.argv[1:])
    summary = score.score_archive(root, model_path=model, table=table, how=Execution(cache, 2), mode="crop")
    print(json.dumps([summary.refused, summary.faces]))
"""


def start_on_a_breaking_picture(does: str, tmp_path: Path, model_folder: Path, cache: Path) -> subprocess.Popen[str]:
    folder = many(tmp_path / "many", 20)
    (folder / "bad.png").write_bytes(encoded(Image.new("RGB", (65, 64), "white")))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS.format(does=does))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, folder, model_folder, tmp_path / "table", cache]
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("does", "told"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "crashed"), ("time.sleep(1000)", "took more than 4 seconds")],
)
def test_a_picture_that_breaks_its_decoder_costs_only_itself(
    does: str, told: str, tmp_path: Path, model_folder: Path, cache: Path
) -> None:
    running = start_on_a_breaking_picture(does, tmp_path, model_folder, cache)
    answer, complaint = running.communicate()
    assert running.returncode == 0, complaint
    assert json.loads(answer) == [{"decoder_failed": 1}, 20]
    [bad] = rows(tmp_path)["bad.png"]
    assert told in bad["error"]


def test_a_picture_that_other_jobs_keep_the_cores_from_is_waited_for(
    tmp_path: Path, model_folder: Path, cache: Path
) -> None:
    """Seven seconds, under four of them on a core: it is at work, and slow only as the machine is."""
    at_work = (
        "[[sum(range(10_000)) for _ in iter(lambda: time.process_time() < mark + 0.25, False)] and time.sleep(0.3)"
    )
    does = f"{at_work} for mark in map(lambda _: time.process_time(), range(12))]"
    running = start_on_a_breaking_picture(does, tmp_path, model_folder, cache)
    answer, complaint = running.communicate()
    assert running.returncode == 0, complaint
    assert json.loads(answer) == [{}, 21]


def test_an_interrupted_run_does_not_wait_for_a_picture_that_hangs(
    tmp_path: Path, model_folder: Path, cache: Path
) -> None:
    hangs = tmp_path / "hangs"
    does = f"open({str(hangs)!r}, 'w').close(); time.sleep(1000)"
    running = start_on_a_breaking_picture(does, tmp_path, model_folder, cache)
    while not hangs.exists() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, complaint = running.communicate(timeout=120)
    assert running.returncode == -signal.SIGINT, complaint


def test_content_that_moved_away_from_a_replaced_file_is_scored_anew(run: Any, tmp_path: Path) -> None:
    """The second shard asks for a holder that the first has just replaced: none of its files has one left."""
    folder = many(tmp_path / "many", 40)
    first, *others = sorted(folder.iterdir())
    run(root=folder, mode="crop", workers=1)
    first.rename(folder / "zz.png")
    first.write_bytes(encoded(Image.new("RGB", (64, 64), (1, 2, 3))))
    for path in others[:15]:
        os.utime(path)
    summary = run(root=folder, mode="crop", workers=1)
    assert (summary.found, summary.refused) == (41, {})
    assert set(rows(tmp_path)) == {path.name for path in folder.iterdir()}


def test_a_row_is_of_what_was_read_not_of_what_was_listed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced between listing and reading, and then restored with its old size and date."""
    folder = many(tmp_path / "many", 1)
    [picture] = folder.iterdir()
    before, stat = picture.read_bytes(), picture.stat()
    files = door.find(door.at(folder)).files
    picture.write_bytes(encoded(Image.new("RGB", (80, 80), "white")))
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "walk", lambda *_: iter(files))
        run(root=folder, mode="crop", workers=1)
    picture.write_bytes(before)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(root=folder, mode="crop", workers=1)
    [row] = rows(tmp_path)[picture.name]
    assert (row["bytes"], row["content_hash"]) == (len(before), blake2b(before, digest_size=32).hexdigest())
