"""The flows on a real Prefect server: as functions, as scripts, and as a worker runs them by schedule."""

import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from models import tiny_model
from nights import night
from nights import store as store_nights
from pictures import encoded, seven_faces, torn
from PIL import Image
from servers import free_port, started, wait_for

import flows.score  # before prefect: it turns telemetry off
from agewatch.api import model_file
from agewatch.estimator.model import AgeModel
from agewatch.release import store
from agewatch.release.package import package
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution
from agewatch.serving.torchserve import running

# isort: split

from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.drift import drift_report

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
START_SECONDS = 180
RUN_SECONDS = 240


@dataclass(frozen=True)
class Api:
    """A running Prefect server."""

    url: str
    env: dict[str, str]

    def ask(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.url}/{path}", json=body, timeout=60, trust_env=False)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment."""
        return list(self.ask("flow_runs/filter", deployments={"name": {"any_": [deployment]}}))

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """The data of a flow run's artifacts by their keys."""
        found = self.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact["data"] for artifact in found}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {name: text for name, text in os.environ.items() if not name.startswith(("PREFECT_", "AGEWATCH_"))}
    env |= {"PREFECT_HOME": str(folder), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env |= {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with started(command, log=log, cwd=folder, env=env) as process:
        wait_for(f"{url}/health", process, log, START_SECONDS)
        yield Api(url, env)


@pytest.fixture
def here(api: Api) -> Iterator[Api]:
    """Flows called in this process report to the server."""
    with temporary_settings({PREFECT_API_URL: api.url, PREFECT_HOME: api.env["PREFECT_HOME"]}):
        yield api


def noise(folder: Path, count: int, seed: int, brightness: int = 128) -> None:
    """Write different 64 px pictures around a brightness, 0..255."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        coarse = random.normal(brightness, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / f"{seed}-{index:03d}.png")


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose reference rows are its own on generated faces."""
    folder = tmp_path_factory.mktemp("model")
    noise(folder / "held_out", 120, seed=1)
    run, table = tiny_model(folder / "run"), folder / "table"
    cache = folder / "cache"
    score_archive(folder / "held_out", model_path=run, table=table, how=Execution(cache, 1), mode="crop")
    rows = predictions.read(table)
    pq.write_table(rows.append_column("age_true", rows["age"]), run / "reference.parquet")
    return package(run, version="1", store=folder / "store")


@pytest.fixture
def desk(tmp_path: Path, mar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model store, whose current model is the tiny one."""
    models = tmp_path / "model_store"
    models.mkdir()
    shutil.copy(mar, models)
    shutil.copytree(mar.parents[1] / "cache", tmp_path / ".agewatch" / "cache")  # converting takes seconds
    store.promote(models, models / mar.name)
    monkeypatch.chdir(tmp_path)
    for name in ("AGEWATCH_HOME", "AGEWATCH_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def statuses(desk: Path) -> dict[str, str]:
    """Status by path of all rows in a desk's table."""
    rows = predictions.read(desk / ".agewatch" / "predictions")
    assert len(rows) == len(set(rows["path"].to_pylist())), "these archives have one face a file"
    return dict(zip(rows["path"].to_pylist(), rows["status"].to_pylist(), strict=True))


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
    assert state.message == ("9 of 9 files were scored now; in all 7 faces, 1 files without a face, 1 refused.")
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
    assert str(state.message).endswith(f"There is no folder {desk / 'nowhere'}.")


def test_the_verdict_is_the_message_of_a_completed_run(here: Api, desk: Path) -> None:
    noise(desk / "archive", 5, seed=2)
    assert flows.score.score_archive("archive", mode="crop", return_state=True).is_completed()
    table, model = desk / ".agewatch" / "predictions", AgeModel.load(model_file(None)).id
    for answer, nights in (("too_little_data", []), ("drift", [night(0, 4000), night(1, 300, older=12)])):
        store_nights(table, *(with_model(rows, model) for rows in nights), archive="archive", root=desk / "archive")
        state = drift_report(mode="detect" if nights else "crop", return_state=True)
        assert state.is_completed()
        content = shown_report(here, str(state.state_details.flow_run_id))
        assert content["verdict"] == answer
        assert state.message == f"{answer}: {content['headline']}"


def with_model(rows: pa.Table, model: str) -> pa.Table:
    place = rows.schema.get_field_index("model")
    return rows.set_column(place, rows.schema.field("model"), pa.array([model] * len(rows), pa.string()))


def shown_report(api: Api, run_id: str) -> Any:
    """What drift.json says, beside the page that the run's link leads to."""
    artifacts = api.artifacts(run_id)
    link = re.search(r"\((file://.*)\)", artifacts["drift-report"])
    assert link
    page = Path(unquote(urlsplit(link[1]).path))
    content = json.loads((page.parent / "drift.json").read_text())
    assert content["report"] == str(page)
    assert content["headline"] in artifacts["drift-verdict"]
    for column in content["columns"]:
        assert f"| {column['name']} |" in artifacts["drift-verdict"]
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


def prefect(*arguments: str, cwd: Path, api: Api) -> str:
    done = subprocess.run(
        [str(BIN / "prefect"), "--no-prompt", *arguments],
        cwd=cwd, env=api.env, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_drift_is_reported_every_night_after_scoring() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    crons = {each["name"]: [s["cron"] for s in each["schedules"]] for each in content["deployments"]}
    night = datetime(2026, 1, 2, tzinfo=UTC)
    dates = {name: asyncio.run(CronSchedule(cron=cron).get_dates(2, start=night)) for name, [cron] in crons.items()}
    for name in ("score", "drift"):
        assert dates[name][1] - dates[name][0] == timedelta(days=1)
    assert night < dates["score"][0] < dates["drift"][0] < night + timedelta(days=1)
    assert timedelta(days=28) <= dates["retrain"][1] - dates["retrain"][0] <= timedelta(days=31)


def hastened(prefect_yaml: Path) -> str:
    """The real deployments, with seconds for their nights and months, and parameters for small pictures."""
    content = yaml.safe_load(prefect_yaml.read_text())
    seconds = {"score": 25, "drift": 50, "retrain": 5}  # a retraining takes longer: the next ones are cancelled
    parameters = {"score": {"mode": "crop", "max_refused": 0.2}, "retrain": {"recipe": "recipe.toml"}}
    for deployment in content["deployments"]:
        deployment["schedules"] = [{"interval": seconds[deployment["name"]], "active": True}]
        deployment["parameters"] |= parameters.get(deployment["name"], {})
    return yaml.safe_dump(content)


def completed(api: Api, deployment: str, worker: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """Wait for a deployment's first completed run."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline and worker.poll() is None:
        for run in api.runs(deployment):
            if run["state_type"] == "COMPLETED":
                return run
        time.sleep(1)
    states = [(run["state_name"], run["state"]["message"]) for run in api.runs(deployment)]
    raise AssertionError(f"No run of {deployment} completed: {states}\n{log.read_text()[-6000:]}")


def labelled(folder: Path) -> None:
    """160 generated faces: the older, the brighter."""
    for age in (10, 30, 50, 70):
        noise(folder / str(age), 40, seed=age, brightness=60 + 2 * age)


def test_a_worker_runs_the_deployments_by_their_schedules(api: Api, desk: Path) -> None:
    noise(desk / "archive", 39, seed=4)
    (desk / "archive" / "torn.png").write_bytes(torn((desk / "archive" / "4-000.png").read_bytes()))
    labelled(desk / "labelled")
    (desk / "recipe.toml").write_text("epochs = 1\nbatch_size = 16\n")
    (desk / "prefect.yaml").write_text(hastened(ROOT / "prefect.yaml"))
    pointer = (desk / "model_store" / "current.json").read_bytes()

    prefect("work-pool", "create", "local", "--type", "process", cwd=desk, api=api)
    prefect("deploy", "--all", cwd=desk, api=api)
    log = desk / "worker.log"
    command = [str(BIN / "prefect"), "worker", "start", "--pool", "local"]
    with started(command, log=log, cwd=desk, env=api.env) as worker:
        retrained = completed(api, "retrain", worker, log)
        overlapping = [run for run in api.runs("retrain") if run["state_type"] == "CANCELLED"]
        api.ask(f"deployments/{retrained['deployment_id']}/pause_deployment")
        scored = completed(api, "score", worker, log)
        reported = completed(api, "drift", worker, log)

    for run in (scored, reported, retrained):
        assert run["auto_scheduled"]
        assert run["created_by"]["type"] == "SCHEDULE"
    assert overlapping, "a run that was due during another was not cancelled"

    expected = {f"4-{index:03d}.png": "ok" for index in range(39)} | {"torn.png": "truncated"}
    assert statuses(desk) == expected
    content = shown_report(api, reported["id"])
    assert reported["state"]["message"] == f"{content['verdict']}: {content['headline']}"
    assert (content["archive"], content["verdict"]) == ("archive", "too_little_data")
    assert content["headline"].startswith("Too little data: 39 of the 2,000 faces")

    new = desk / "model_store" / "agewatch-2.mar"
    model = AgeModel.load(new)
    assert model.id in retrained["state"]["message"]
    assert "| CNN | " in api.artifacts(retrained["id"])["retrain-comparison"]
    assert (desk / "model_store" / "current.json").read_bytes() == pointer, "nobody promoted it"
    with running(new, home=desk / "home", port=free_port(), workers=1) as served:
        answer = httpx.put(
            served.predictions_url,
            params={"faces": "crop"},
            content=(desk / "archive" / "4-001.png").read_bytes(),
            headers={"Authorization": f"Bearer {served.token}", "Faces": "crop"},
            timeout=60,
            trust_env=False,
        )
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["model"] == model.id
    assert 0 <= answer.json()["faces"][0]["age"] <= 100
