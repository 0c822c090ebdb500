"""A predictions table that may be read and not written: a tmpfs that is remounted read-only for the test."""

import json
import subprocess
import sys
from pathlib import Path

RUNS = """
import json, shutil, subprocess, sys
folder, archive, *score = sys.argv[1:]

def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

table = score[score.index("--predictions") + 1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], check=True)
told = {"first": run(*score)}
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
told["nothing new"] = run(*score)
told["export"] = run(score[0], "export", "--all-models", "--predictions", table, "--out", f"{archive}.csv")
told["new name"] = run(*score, "--archive", "other")
shutil.copy(f"{archive}/face.png", f"{archive}/new.png")
told["new file"] = run(*score)
told["new table"] = run(*score[:-2], "--predictions", f"{folder}/other")
print(json.dumps(told))
"""


def test_a_table_that_may_only_be_read_is_a_sentence(
    tmp_path: Path, home: Path, archive: Path, model_folder: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    score = [str(Path(sys.executable).with_name("agewatch")), "score", str(archive), "--max-refused", "1"]
    score += ["--model", str(model_folder), "--predictions", str(disk / "table")]
    alone = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", RUNS, str(disk), str(archive)]
    done = subprocess.run([*alone, *score], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"This test mounts a tmpfs in a user namespace, which must be allowed: {done.stderr}"
    told = json.loads(done.stdout)
    for name in ("first", "nothing new", "export"):
        assert told[name]["code"] == 0, told[name]
    for name in ("new name", "new file"):
        assert told[name]["code"] == 1
        assert (
            told[name]["stderr"] == f"agewatch: The table {disk / 'table'} can't be written by this user, only read.\n"
        )
    assert told["new table"]["code"] == 1
    assert told["new table"]["stderr"].startswith(f"agewatch: The table {disk / 'other'} can't be opened: ")
    assert len(told["new table"]["stderr"].splitlines()) == 1
