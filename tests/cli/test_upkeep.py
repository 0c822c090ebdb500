"""`doctor`, `backup` and `restore` as a user runs them, and that the home is its user's alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import model_file

AGEWATCH = str(Path(sys.executable).with_name("agewatch"))


def run(*command: object, umask: int = 0o022, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [AGEWATCH, *map(str, command)], capture_output=True, text=True, check=False, umask=umask, env=os.environ | env
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_what_is_written_is_its_users_alone_and_goes_to_another_home(
    tmp_path: Path, home: Path, archive: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "store", "1")
    model = ("--model", model_folder)
    assert run("score", archive, *model, "--workers", "1", "--max-refused", "1")[0] == 0
    assert run("drift", *model)[0] == 5
    (tmp_path / "labels.csv").write_text("path,age\nface.png,40\n")
    assert run("labels", "add", "labels.csv", *model)[0] == 0
    written = [home, *home.rglob("*")]
    assert {"predictions", "reports", "labels.parquet"} <= {path.name for path in written}
    assert [path for path in written if path.stat().st_mode & 0o077] == []
    assert run("export", "--out", "rows.csv", *model)[0] == run("export", "--out", home / "rows.csv", *model)[0] == 0
    other = {"AGEWATCH_HOME": str(tmp_path / "other")}
    table = ("--predictions", tmp_path / "shared", "--max-refused", "1")
    assert run("score", archive, *model, *table, umask=0o027, **other)[0] == 0
    assert run("init", archive)[0] == 0
    places = ("rows.csv", "home/rows.csv", "prefect.yaml", "shared", "shared/_delta_log", "other")
    assert [(tmp_path / place).stat().st_mode & 0o777 for place in places] == [
        0o644, 0o600, 0o644, 0o750, 0o750, 0o700,
    ]  # fmt: skip

    code, out, _ = run("doctor", "--json")
    told = json.loads(out)
    assert [each for each in told["findings"] if each["check"] == "permissions"] == [
        {"check": "permissions", "state": "ok", "sentence": f"{home} is this user's alone.", "mend": None}
    ]
    assert code == (0 if told["ok"] else 1)
    home.chmod(0o755)
    code, out, _ = run("doctor")
    assert code == 1
    assert f"Mend: chmod -R go= {home}" in out

    code, out, _ = run("backup", "b.tar", "--json")
    assert (code, json.loads(out)["archives"]) == (0, ["archive"])
    new = {"AGEWATCH_HOME": str(tmp_path / "new"), "AGEWATCH_MODEL_STORE": str(tmp_path / "new-store")}
    code, out, _ = run("restore", "b.tar", **new)
    assert (code, "as it was at" in out) == (0, True)
    code, _, err = run("restore", "b.tar", **new)
    assert (code, "holds a predictions table already" in err) == (2, True)
    code, out, _ = run("restore", tmp_path / "none.tar", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")
    code, _, err = run("backup", tmp_path / "none" / "b.tar")
    assert (code, "folder is missing" in err) == (2, True)
