import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import EXPECTED
from faces_drawn import write_age_folders
from models import tiny_model
from pictures import seven_faces

from agewatch.release.package import package
from agewatch.release.store import promote
from agewatch.settings import Settings

AGEWATCH = Path(sys.executable).with_name("agewatch")


def agewatch(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([AGEWATCH, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def answer(*arguments: object) -> tuple[int, Any]:
    code, out, _ = agewatch(*arguments, "--json")
    return code, json.loads(out)  # one JSON object and nothing else


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Path:
    """A store with one promoted model."""
    folder = tmp_path / "store"
    promote(folder, package(tiny_model(tmp_path / "model"), version="1", store=folder))
    return folder


def test_score_export_and_drift_in_json(store: Path, home: Path, archive: Path, tmp_path: Path) -> None:
    code, summary = answer("score", archive)
    assert code == summary["exit_code"] == 3  # half of the files are broken
    assert summary["found"] == len(EXPECTED)
    assert summary["refused"] == {"empty": 1, "truncated": 1, "unsupported": 1}
    assert summary["predictions"] == str(home / "predictions")
    code, again = answer("score", archive, "--max-refused", "1")
    assert (code, again["scored"], again["skipped"], again["faces"]) == (0, 0, 6, 2)
    out = tmp_path / "refused.csv"
    code, exported = answer("export", "--status", "refused", "--out", out)
    assert (code, exported["rows"]) == (0, 3)
    assert len(out.read_text().splitlines()) == 4
    assert answer("export", "--out", tmp_path / "nowhere.csv", "--archive", "x")[0] == 2


def test_the_summary_for_a_person(store: Path, archive: Path) -> None:
    code, out, err = agewatch("score", archive)
    assert code == 3
    for word in (
        "truncated",
        "unsupported",
        "no_face",
        "found",
        "faces/s",
        "Rows:",
        "Ages:",
        "than the 5% allowed",
    ):
        assert word in out
    assert "6 of 6 files" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["score", "missing"], "There is no folder"),
        (["score"], "Missing argument"),
        (["score", ".", "--faces", "all"], "Invalid value"),
        (["score", ".", "--max-refused", "2"], "Invalid value"),
        (["train", "missing"], "There is no folder, CSV"),
        (["models", "rollback"], "no earlier model"),
        (["models", "promote", "x.mar"], "not in the model store"),
        (["evaluate", "missing"], "There is no folder, CSV"),
        (["models", "compare", "x.mar"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(store: Path, arguments: list[str], sentence: str) -> None:
    code, out, err = agewatch(*arguments)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) <= 2
    assert out == ""


def test_an_empty_argument_is_not_the_folder_here(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for arguments in (
        ["score", ""],
        ["score", ".", "--predictions", ""],
        ["export", "--out="],
        ["models", "promote", ""],
    ):
        code, failed = answer(*arguments)
        assert (code, failed["error"]["code"]) == (2, "usage")
        assert "empty" in failed["error"]["message"]
    assert list(Path().iterdir()) == []


def test_an_empty_setting_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEWATCH_HOME", "")
    assert Settings().home == Path(".agewatch")


def test_a_tilde_in_a_setting_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AGEWATCH_HOME", "~/x")
    assert Settings().home == tmp_path / "x"


def test_failures_in_json(store: Path, archive: Path, tmp_path: Path) -> None:
    code, failed = answer("score", "missing")
    assert (code, failed["error"]["code"]) == (2, "usage")
    assert failed["error"]["message"].endswith("missing.")
    code, failed = answer("score", archive, "--model", tmp_path / "none.mar")
    assert (code, failed["error"]["code"]) == (2, "usage")
    code, failed = answer("drift")
    assert (code, failed["error"]["code"]) == (1, "table")


def test_an_empty_folder_is_no_failure(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, _ = agewatch("score", tmp_path / "empty")
    assert code == 0
    assert "No pictures" in out


def test_train_package_promote_and_roll_back(store: Path, tmp_path: Path) -> None:
    write_age_folders(tmp_path / "drawn", ages=[10, 40, 70], each=40)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\nbatch_size = 16\n")
    code, trained = answer("train", tmp_path / "drawn", "--recipe", recipe, "--out", tmp_path / "run")
    assert code == 0
    assert [row["name"] for row in trained["tables"]["all"]][3] == "CNN"
    code, packaged = answer("package", trained["model"])
    assert code == 0
    assert Path(packaged["file"]).name == "agewatch-2.mar"
    listed = answer("models", "list")[1]["models"]
    assert [(Path(model["file"]).name, model["current"]) for model in listed] == [
        ("agewatch-1.mar", True),
        ("agewatch-2.mar", False),
    ]
    code, refused = answer("models", "promote", packaged["file"])
    assert (code, refused["error"]["code"]) == (2, "usage")
    assert f"agewatch models compare {packaged['file']}" in refused["error"]["message"]
    assert answer("models", "promote", packaged["file"], "--force")[1]["model"] == packaged["model"]
    assert answer("models", "rollback")[1]["file"] == "agewatch-1.mar"


def test_evaluate_prints_tables_and_leaves_json_and_a_card(store: Path, tmp_path: Path) -> None:
    write_age_folders(tmp_path / "drawn", ages=[10, 40, 70], each=12)
    out, card = tmp_path / "new" / "evaluation.json", tmp_path / "card"
    code, found = answer("evaluate", tmp_path / "drawn", "--out", out, "--card", card, "--workers", "1")
    assert code == 0
    assert found["overall"]["n"] == 36
    assert json.loads(out.read_text()) == found
    assert found["model"] in (card / "MODEL_CARD.md").read_text()
    assert (card / "model_card.svg").is_file()
    code, text, _ = agewatch("evaluate", tmp_path / "drawn", "--workers", "1")
    assert code == 0
    assert found["model"] in text
    assert f"MAE {found['overall']['mae']:.2f} years" in text
    for part in found["slices"]:
        assert re.search(rf"{re.escape(part['value'])} +{part['n']} +{part['mae']:.2f} ", text), part
    assert "may be among them" not in text
    (tiny_model(tmp_path / "silent") / "splits.parquet").unlink()
    _, text, _ = agewatch("evaluate", tmp_path / "drawn", "--workers", "1", "--model", tmp_path / "silent")
    assert "may be among them" in text  # this one has no list of what it learnt from


def test_compare_decides_and_promote_obeys(store: Path, tmp_path: Path) -> None:
    challenger = package(tiny_model(tmp_path / "second", seed=1), version="2", store=store)
    write_age_folders(tmp_path / "drawn", ages=[10, 40, 70], each=4)
    code, record = answer("models", "compare", challenger, tmp_path / "drawn", "--workers", "1")
    assert code == 0
    assert record["decision"]["promote"] is False
    assert record["decision"]["n"] == 12
    code, text, _ = agewatch("models", "compare", challenger, tmp_path / "drawn", "--workers", "1")
    assert code == 0
    assert f"Held back. {record['decision']['reason']}" in text
    listed = answer("models", "list")[1]["models"]
    assert listed[0]["decision"] is None
    reason = record["decision"]["reason"]
    assert listed[1]["decision"] == {"promote": False, "reason": reason, "over": record["champion"]}
    assert f"held back against {record['champion']}" in agewatch("models", "list")[1].replace("\n", " ")
    code, failed = answer("models", "promote", challenger)
    assert (code, failed["error"]["code"]) == (1, "held_back")
    assert reason in failed["error"]["message"]
    code, text, _ = agewatch("models", "promote", challenger, "--force")
    assert code == 0
    assert "Forced" in text
    assert answer("models", "list")[1]["models"][1]["current"]


def test_ctrl_c_is_exit_130_and_the_next_run_finishes(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        for name, data in seven_faces().items():
            (folder / f"{number}-{name}").write_bytes(data)
    process = subprocess.Popen(
        [AGEWATCH, "score", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("0 of")
    command = psutil.Process(process.pid)
    while not any(child.cpu_times().user > 0.5 for child in command.children()):  # a worker that opens its model
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert answer("score", folder)[1]["found"] == 84
