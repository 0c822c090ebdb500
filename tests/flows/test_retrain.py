"""From an alarm to a better model, on a real Prefect server: retrain, hold, promote, and tell why."""

import errno
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from models import tiny_model
from nights import day, night
from nights import store as store_nights
from PIL import Image
from servers import Api, free_port

import flows.retrain  # before prefect: it turns telemetry off
from agewatch import files, score_archive
from agewatch.errors import AgewatchError, HeldBackError, LabelError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.labelled import late
from agewatch.nights.ledger import Ledger
from agewatch.nights.night import held
from agewatch.release import gate, records, smoke, store, why
from agewatch.release.package import package
from agewatch.scoring import predictions
from agewatch.scoring.predictions import Key
from agewatch.settings import without_paths
from flows import steps
from flows.events import ensure_automations, tell
from flows.steps import can_pass
from monitoring import drift

# isort: split

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

RECIPE = "epochs = 2\nbatch_size = 32\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe and a model store, whose current model guesses."""
    models = tmp_path / "model_store"
    store.promote(models, package(tiny_model(tmp_path / "run"), version="1", store=models))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    for name in ("AGEWATCH_HOME", "AGEWATCH_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def faces(folder: Path, count: int) -> None:
    """So many generated crops of each of four ages: the older, the brighter."""
    for age in (10, 30, 50, 70):
        random = np.random.default_rng(age)
        (folder / str(age)).mkdir(parents=True)
        for index in range(count):
            coarse = random.normal(60 + 2 * age, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((64, 64)).save(folder / str(age) / f"{index}.png")


def town(desk: Path, nights: dict[int, int], older: dict[int, float], model: str) -> None:
    """An archive of crops that a model scored in some nights: real files, under rows of ages as they are drawn."""
    tables = []
    for number, count in nights.items():
        rows = night(number, count, older=older.get(number, 0), model=model).to_pylist()
        for place, row in enumerate(rows):
            file = desk / "town" / row["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([number, place]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(file, "PNG")
            found = file.stat()
            row |= {"mode": "crop", "bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "engine": "drawn"}
            row["content_hash"] = blake2b(file.read_bytes(), digest_size=32).hexdigest()
        tables.append(pa.Table.from_pylist(rows, predictions.SCHEMA))
    store_nights(desk / ".agewatch" / "predictions", *tables, root=desk / "town")


def deployed(api: Api) -> None:
    with get_client(sync_client=True) as client:
        flow = client.create_flow(flows.retrain.retrain)
        client.create_deployment(flow, "retrain", parameters={"sources": ["labelled", "labels:town"]})


def asked_for(api: Api) -> dict[str, Any]:
    """The parameters of the run that an automation made."""
    for _ in range(240):
        if runs := api.runs("retrain"):
            return dict(runs[0]["parameters"])
        time.sleep(0.5)
    events = api.ask("events/filter", filter={"event": {"prefix": ["agewatch."]}})
    raise AssertionError(f"Nothing was run: {events}")


def kept_events(api: Api, count: int) -> list[dict[str, Any]]:
    """Events of ours; the server keeps them some seconds after it has reacted to them."""
    for _ in range(120):
        found = api.ask("events/filter", filter={"event": {"prefix": ["agewatch."]}})["events"]
        if len(found) >= count:
            break
        time.sleep(0.5)
    return list(found)


def test_people_drift_leads_to_a_better_model_that_is_held_promoted_and_scores_the_archive_anew(
    here: Api, desk: Path
) -> None:
    models, table = desk / "model_store", desk / ".agewatch" / "predictions"
    old = AgeModel.load(models / "agewatch-1.mar").id
    town(desk, {0: 2000, 1: 200, 2: 200, 3: 200}, {2: 12, 3: 12}, old)
    deployed(here)
    assert len(set(ensure_automations())) == len(ensure_automations()) == 2
    assert len(here.ask("automations/filter")) == 2, "made once, however often they are asked for"

    # Night by night: drift is told at once, and a retraining is asked for once there are labels, once.
    drifted = drift.run("town", mode="crop").content()
    assert (drifted["verdict"], drifted["cause"]) == ("drift", "people")
    assert tell(drifted).why.startswith("0 labels came")
    rows = predictions.read(table, columns=["path", "age"]).slice(2000, 240)
    (desk / "ages.csv").write_text("path,age\n" + "".join(f"{r['path']},{r['age']:.0f}\n" for r in rows.to_pylist()))
    late.add(table, Key("town", old, "crop"), desk / "ages.csv")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        assert tell(drifted).answer == "retrain"
    assert records.alarms(models) == [], "the server was away: the next night asks again"
    assert tell(drifted).answer == "retrain"
    assert tell(drifted).why.startswith("A retraining was asked for")
    [alarm] = records.alarms(models)
    parameters = asked_for(here)
    assert parameters == {"sources": ["labelled", "labels:town"], "because": alarm.id}
    events = kept_events(here, 4)
    assert Counter(event["event"] for event in events) == {"agewatch.drift": 3, "agewatch.retrain-wanted": 1}
    assert str(desk) not in str(events)

    faces(desk / "labelled", 600)
    state = flows.retrain.retrain(**parameters, recipe="recipe.toml", return_state=True)
    assert state.is_completed(), state.message
    new = models / "agewatch-2.mar"
    model = AgeModel.load(new).id
    assert str(state.message).startswith(f"{model} is in the store as agewatch-2.mar, not promoted: it waits")
    assert "Passed: Better beyond noise" in str(state.message)
    told = here.artifacts(str(state.state_details.flow_run_id))["retrain-comparison"]
    assert "| CNN | " in told
    assert str(desk) not in told + str(state.message)
    tested = smoke.of(models, model)
    assert tested is not None
    assert (tested.passed, tested.champion) == (True, old)
    assert tell(drifted).why.startswith(f"{model} passed and waits for approval")
    gate.promote(models, new, force=False, by="somebody")

    summary = score_archive("town", faces="crop", anew_minutes=1e-9, workers=1)
    assert (summary.scored, summary.left_to_rescore) == (2000 + 256, 344)
    found = drift.run("town", mode="crop")
    assert (found.left_to_rescore, found.key.model) == (344, model)
    assert found.verdict.baseline is not None
    assert found.verdict.baseline.n_faces == 2000
    assert [one.window.first for one in found.verdict.windows] == [day(3)]  # the newest night is whole, day 2 is not
    assert score_archive("town", faces="crop", anew_minutes=60, workers=1).left_to_rescore == 0
    found = drift.run("town", mode="crop")
    assert [one.window.first for one in found.verdict.windows] == [day(1), day(2), day(3)]

    life = why.of(models)
    assert (life.alarm, life.replaced, life.is_current) == (alarm, old, True)
    story = "\n".join(why.told(life))
    for part in (
        alarm.headline,
        f"from {old}",
        life.content()["data_hash"],
        "| CNN |",
        "passed. Better",
        "by somebody",
    ):
        assert part in story
    store.rollback(models)
    assert "rolled back to" in why.told(why.of(models, "2"))[-1]
    new.unlink()
    assert any("not known any more" in line for line in why.told(why.of(models, model)))


def test_a_model_that_a_server_answers_for_otherwise_is_never_promoted_without_force(
    here: Api, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = desk / "model_store"
    # What is served is another model than the file tells: as code that reads a picture otherwise would be.
    other = package(tiny_model(desk / "other", seed=3), version="2", store=models)
    answers = smoke._held(models / "agewatch-1.mar")
    monkeypatch.setattr(smoke, "_held", lambda _: answers)
    tested = flows.retrain.smoke_test(other, flows.retrain.Settings())
    assert not tested.passed
    assert "years off, where 0.01 are allowed" in tested.reason
    with pytest.raises(HeldBackError, match="failed its smoke test"):
        gate.promote(models, other, force=False)
    assert gate.promote(models, other, force=True).forced


def test_a_model_that_a_retraining_left_untested_is_tested_before_it_is_promoted(desk: Path) -> None:
    models = desk / "model_store"
    new = package(tiny_model(desk / "other", seed=3), version="2", store=models)
    records.keep(models, records.Training(AgeModel.load(new).id, new.name, "start", "run", None, files.now()))
    with pytest.raises(UsageError, match="agewatch models smoke"):
        gate.promote(models, new, force=False)


def test_a_second_retraining_is_skipped_and_a_wrong_source_is_told_without_its_path(here: Api, desk: Path) -> None:
    with held(Ledger(desk / ".agewatch"), "", "retrain", datetime.now(UTC) - timedelta(minutes=1)):
        state = flows.retrain.retrain(["labelled"], return_state=True)
    assert state.is_completed()
    assert str(state.message).startswith("skipped:")
    state = flows.retrain.retrain(["nowhere"], return_state=True)
    assert state.is_failed()
    assert state.message == "There is no folder, CSV or Parquet file …."
    assert [night.outcome for night in Ledger(desk / ".agewatch").nights(flow="retrain")] == [
        "done",
        "skipped",
        "failed",
    ]
    told = here.ask("logs/filter", logs={"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}})
    runs = here.ask("task_runs/filter", flow_runs={"id": {"any_": [str(state.state_details.flow_run_id)]}})
    assert str(desk) not in f"{told} {[run['state'] for run in runs]}"


def test_only_what_can_pass_is_tried_again() -> None:
    assert can_pass(OSError(errno.EIO, "a disk that stumbled"))
    assert can_pass(ConnectionRefusedError())
    for stays in (OSError(errno.ENOSPC, "full"), TimeoutError(), AgewatchError("no"), LabelError("no"), ValueError()):
        assert not can_pass(stays)


def test_a_step_whose_disk_stumbled_goes_on_and_one_whose_disk_is_full_does_not(
    here: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_DELAYS", [0.0, 0.0, 0.0])
    tries: list[int] = []

    @steps.step()
    def stumble(number: int, after: int) -> int:
        tries.append(number)
        if len(tries) <= after:
            raise OSError(number, "stumbled", "/secret/place")
        return number

    assert stumble(errno.EIO, 2) == errno.EIO
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(OSError, match="stumbled"):
        stumble(errno.ENOSPC, 1)
    assert tries == [errno.ENOSPC]


def test_no_path_leaves_the_machine(tmp_path: Path) -> None:
    odd, gone = tmp_path / "my press" / "May, 1 (a).jpg", tmp_path / "a disk" / "that is away"
    odd.parent.mkdir()
    odd.touch()
    assert without_paths(f"The file {odd} can't be read.") == "The file … can't be read."
    assert without_paths(f"There is no folder {gone}.", gone) == "There is no folder …."
    assert without_paths("The folder /a/b can't be listed.") == "The folder … can't be listed."
    assert without_paths("/w/t.csv, line 3: 'abc' is no age.") == "…, line 3: 'abc' is no age."
    assert without_paths("see /a/ts_log.log and /b/java.log.") == "see … and …."
    kept = "MAE 5.12 years against 6.20 on 216 pictures, at 100% of the CPU time."
    assert without_paths(kept) == kept
