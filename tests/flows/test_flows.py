"""The flows on a real Prefect server: as functions, as scripts, and as a worker runs them by schedule."""

import ast
import json
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from desks import noise, statuses
from nights import night as night_of
from nights import store as store_nights
from pictures import encoded, seven_faces, torn
from PIL import Image
from servers import START_SECONDS, Api, free_port, started, wait_for

import flows.score  # before prefect: it turns telemetry off
from agewatch.api import model_file
from agewatch.estimator.model import AgeModel
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import held, turn
from agewatch.upkeep import disk

# isort: split


from flows.drift import drift_report
from flows.night import night

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RUN_SECONDS = 240


@pytest.fixture
def album(desk: Path) -> Path:
    """Seven faces, a picture without one, and a torn file."""
    folder = desk / "album"
    folder.mkdir()
    for name, data in seven_faces().items():
        (folder / name).write_bytes(data)
    (folder / "wall.png").write_bytes(encoded(Image.new("RGB", (200, 200), "grey")))
    (folder / "torn.jpg").write_bytes(torn(seven_faces()["whole.jpg"]))
    return folder


def test_a_run_tells_what_it_found(here: Api, desk: Path, album: Path) -> None:
    state = flows.score.score_archive("album", max_refused=0.2, return_state=True)
    assert state.is_completed()
    assert state.message == ("9 of 9 files were scored now; in all 7 faces, 1 file without a face, 1 refused.")
    assert Counter(statuses(desk).values()) == {"ok": 7, "no_face": 1, "truncated": 1}
    artifacts = here.artifacts(str(state.state_details.flow_run_id))
    assert artifacts["score-progress"] == 100
    assert "| Faces | 7 |" in artifacts["score-summary"]
    assert "| Refused: truncated | 1 |" in artifacts["score-summary"]


def test_too_many_refused_files_fail_the_run_and_keep_the_rows(here: Api, desk: Path, album: Path) -> None:
    state = flows.score.score_archive("album", return_state=True)
    assert state.is_failed()
    assert state.message == (
        "1 of 9 files were refused (11.1%; 1 truncated), more than the 5% allowed. The rows are committed."
    )
    assert len(statuses(desk)) == 9


def test_an_archive_that_is_gone_fails_the_run_with_that_reason_and_no_path(here: Api, desk: Path) -> None:
    noise(desk / "archive", 5, seed=6)
    assert flows.score.score_archive("archive", mode="crop", return_state=True).is_completed()
    for picture in (desk / "archive").iterdir():
        picture.unlink()
    state = flows.score.score_archive("archive", mode="crop", return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("Nothing is found where 5 files were when the archive was scored last.")
    (desk / "archive").rmdir()
    state = flows.score.score_archive("archive", mode="crop", return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("The archive 'archive' is gone: its folder is not there. Its rows are kept.")
    assert str(desk) not in str(state.message)
    assert len(statuses(desk)) == 5


def test_a_missing_folder_fails_the_run_with_a_sentence(here: Api, desk: Path) -> None:
    state = flows.score.score_archive("nowhere", return_state=True)
    assert state.is_failed()
    assert state.message == "There is no folder …."


def test_the_verdict_is_the_message_of_a_completed_run(here: Api, desk: Path) -> None:
    noise(desk / "archive", 5, seed=2)
    assert flows.score.score_archive("archive", mode="crop", return_state=True).is_completed()
    table, model = desk / ".agewatch" / "predictions", AgeModel.load(model_file(None)).id
    for answer, nights in (("too_little_data", []), ("drift", [night_of(0, 4000), night_of(1, 300, older=12)])):
        store_nights(table, *(with_model(rows, model) for rows in nights), archive="archive", root=desk / "archive")
        state = drift_report(mode="detect" if nights else "crop", return_state=True)
        assert state.is_completed()
        content = shown_report(here, str(state.state_details.flow_run_id), desk)
        assert content["verdict"] == answer
        assert state.message == f"{answer}: {content['headline']}"


def with_model(rows: pa.Table, model: str) -> pa.Table:
    place = rows.schema.get_field_index("model")
    return rows.set_column(place, rows.schema.field("model"), pa.array([model] * len(rows), pa.string()))


def shown_report(api: Api, run_id: str, desk: Path) -> Any:
    """What drift.json says, beside the page that was written; a link to it needs `agewatch up`."""
    artifacts = api.artifacts(run_id)
    page = max((desk / ".agewatch" / "reports").glob("*/*/index.html"))
    content = json.loads((page.parent / "drift.json").read_text())
    assert content["report"] == str(page)
    told = artifacts["drift-verdict"]
    assert {"drift": "- **Drift**: Faces are", "too_little_data": "- **Too little data**: Can't"}[
        content["verdict"]
    ] in told
    assert [line.split("**")[1] for line in told.splitlines()][1:] == ["Since", "Cause", "Folder", "How sure", "Do now"]
    assert str(desk) not in told
    assert not [picture["path"] for picture in content["pictures"] if picture["path"] in told]
    assert "<html" in page.read_text()[:1000]
    return content


def script(name: str, *arguments: str, cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "flows" / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def test_scoring_runs_as_a_script_without_a_server(api: Api, desk: Path) -> None:
    noise(desk / "archive", 9, seed=3)
    (desk / "archive" / "torn.png").write_bytes(torn((desk / "archive" / "3-000.png").read_bytes()))
    env = {name: text for name, text in api.env.items() if name != "PREFECT_API_URL"}
    done = script("score.py", "archive", cwd=desk, env=env | {"PREFECT_HOME": str(desk / "prefect")})
    assert done.returncode == 1, done.stderr
    assert "1 of 10 files were refused (10.0%; 1 truncated), more than the 5% allowed." in done.stderr
    assert len(statuses(desk)) == 10


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("drift.py", [], "There is no predictions table at"),
        ("retrain.py", ["nowhere"], "There is no folder, CSV or Parquet file /"),
    ],
)
def test_the_other_scripts_run_too_and_end_with_the_sentence_of_an_error(
    api: Api, desk: Path, name: str, arguments: list[str], sentence: str
) -> None:
    done = script(name, *arguments, cwd=desk, env=api.env)
    assert done.returncode == 1
    assert sentence in done.stderr


@pytest.mark.parametrize("name", ["score.py", "drift.py", "retrain.py"])
def test_a_script_turns_telemetry_off_before_all_else(name: str) -> None:
    statements = ast.parse((ROOT / "flows" / name).read_text()).body
    first = next(each for each in statements if isinstance(each, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == "import flows"


def test_telemetry_is_off_where_flows_are(api: Api, tmp_path: Path) -> None:
    code = "import flows.score, prefect.analytics; print(prefect.analytics.is_telemetry_enabled())"
    env = {name: text for name, text in api.env.items() if name != "CI"} | {"DO_NOT_TRACK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=RUN_SECONDS, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False"]


def test_a_night_is_scored_judged_and_written_down(here: Api, desk: Path, album: Path) -> None:
    state = night("album", max_refused=0.2, return_state=True)
    assert state.is_completed()
    assert str(state.message).startswith("too_little_data: Too little data: 7 of the 2,000 faces")
    assert str(state.message).endswith("in all 7 faces, 1 file without a face, 1 refused.")
    artifacts = here.artifacts(str(state.state_details.flow_run_id))
    assert {"score-progress", "score-summary", "drift-verdict"} <= set(artifacts)
    assert not any(str(desk) in str(shown) for shown in artifacts.values()), "paths stay at home"
    [row] = Ledger(desk / ".agewatch").nights()
    assert (row.archive, row.outcome, row.run) == ("album", "done", str(state.state_details.flow_run_id))
    assert (row.figures["found"], row.figures["faces"], row.figures["verdict"]) == (9, 7, "too_little_data")


def test_a_night_is_judged_by_the_files_that_it_read(here: Api, desk: Path) -> None:
    noise(desk / "archive", 30, seed=9)
    assert night("archive", mode="crop", return_state=True).is_completed()
    for number in range(2):
        (desk / "archive" / f"torn{number}.png").write_bytes(
            torn((desk / "archive" / f"9-00{number}.png").read_bytes())
        )
    state = night("archive", mode="crop", max_refused=0.1, return_state=True)
    assert state.is_failed()
    assert str(state.message) == (
        "2 of the 2 files read were refused (100.0%), more than the 10% allowed. In all 32 files: 2 truncated. The rows"
        " are committed."
    )
    quiet = night("archive", mode="crop", max_refused=0.1, return_state=True)
    assert quiet.is_completed(), "a quiet night after it"
    ledger = Ledger(desk / ".agewatch")
    assert [row.outcome for row in ledger.nights()] == ["done", "refused", "done"]
    assert [(news.what, news.reason) for news in ledger.news()] == [("refused", state.message)]


def test_a_night_whose_archive_is_gone_says_so_in_the_ledger(here: Api, desk: Path) -> None:
    noise(desk / "archive", 3, seed=10)
    assert night("archive", mode="crop", return_state=True).is_completed()
    (desk / "archive").rename(desk / "elsewhere")
    state = night("archive", mode="crop", return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("The archive 'archive' is gone")
    assert [row.outcome for row in Ledger(desk / ".agewatch").nights()] == ["done", "gone"]


def test_a_night_begins_only_where_the_disk_has_room(here: Api, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(desk / "archive", 3, seed=13)
    for floor, value in {"FLOOR_BYTES": 1e18, "FLOOR_SHARE": 1.0}.items():
        monkeypatch.setattr(disk, floor, value)  # the whole disk, which is never free
    state = night("archive", mode="crop", return_state=True)
    assert state.is_failed()
    assert "Nothing was begun; make room" in str(state.message)
    assert [row.outcome for row in Ledger(desk / ".agewatch").nights()] == ["failed"]
    assert not (desk / ".agewatch" / "predictions").exists()


def test_a_night_that_fails_tells_prefect_no_path(here: Api, desk: Path) -> None:
    state = night(str(desk / "never there" / "my press"), mode="crop", return_state=True)
    assert (state.is_failed(), state.message) == (True, "There is no folder ….")
    [row] = Ledger(desk / ".agewatch").nights()
    assert "my press" in str(row.reason), "status, at home, says which"


def test_a_night_that_is_due_while_the_one_before_runs_is_skipped(here: Api, desk: Path) -> None:
    noise(desk / "archive", 3, seed=11)
    ledger = Ledger(desk / ".agewatch")
    with held(ledger, "archive", "night", datetime.now(UTC) - timedelta(minutes=1)):
        state = night("archive", mode="crop", return_state=True)
    assert state.is_completed()
    assert state.name == "Skipped"
    assert str(state.message).startswith("skipped: Another night of it")
    assert [row.outcome for row in ledger.nights()] == ["done", "skipped"]
    assert ledger.news() == []


def test_a_server_that_is_away_costs_no_night(desk: Path, tmp_path: Path, api: Api) -> None:
    """The server is stopped while the flow waits for its turn: rows and ledger are as ever."""
    noise(desk / "archive", 5, seed=12)
    port, log = free_port(), tmp_path / "server.log"
    env = api.env | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    ledger = Ledger(desk / ".agewatch")
    code = "from flows.night import night; night('archive', mode='crop')"
    with turn(ledger, "archive"), started(command, log=log, cwd=desk, env=env) as server:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, log, START_SECONDS)
        with (tmp_path / "flow.log").open("wb") as said:
            flow = subprocess.Popen([sys.executable, "-c", code], cwd=desk, env=env, stdout=said, stderr=said)
        deadline = time.monotonic() + RUN_SECONDS
        while not ledger.nights() and time.monotonic() < deadline:
            time.sleep(0.2)
    try:  # Prefect's own client goes on asking for minutes when all is done
        while ledger.nights()[0].outcome is None and flow.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        flow.kill()
        flow.wait()
    [row] = ledger.nights()
    assert (row.outcome, row.figures["scored"]) == ("done", 5), (tmp_path / "flow.log").read_text()[-3000:]
    assert len(statuses(desk)) == 5
