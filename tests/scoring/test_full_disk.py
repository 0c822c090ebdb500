"""A disk that fills up while a run writes to it: a small tmpfs, mounted where only the test's processes see it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import encoded
from PIL import Image

FILES = 400
RUNS = """
import json, subprocess, sys
folder, out, *score = sys.argv[1:]
agewatch = score[0]

def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

def export(name):
    options = ["--predictions", score[score.index("--predictions") + 1], "--model", score[score.index("--model") + 1]]
    return run(agewatch, "export", "--format", "parquet", "--out", f"{out}/{name}.parquet", *options)

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1120k", "none", folder], check=True)
told = {"full": run(*score), "again": run(*score), "kept": export("kept")}
subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
told |= {"roomy": run(*score, "--json"), "export": export("roomy")}
print(json.dumps(told))
"""


AGES = ["age", "age_low", "age_high"]


def exported(path: Path) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Rows by path without what each run has of its own, and their ages, which batches move by a last digit."""
    table = pq.read_table(path).drop_columns(["run_id", "scored_at", "arrived_at"]).sort_by("path")
    return table.drop_columns(AGES).to_pylist(), [list(row.values()) for row in table.select(AGES).to_pylist()]


def test_a_full_disk_is_a_sentence_and_the_next_run_completes(tmp_path: Path, model_folder: Path, home: Path) -> None:
    archive, disk = tmp_path / "many", tmp_path / "disk"
    archive.mkdir()
    disk.mkdir()
    for number in range(FILES):
        colour = Image.new("RGB", (64, 64), (number % 256, number // 256, 0))
        (archive / f"{number:03}.png").write_bytes(encoded(colour))
    agewatch = str(Path(sys.executable).with_name("agewatch"))
    score = [agewatch, "score", str(archive), "--faces", "crop", "--model", str(model_folder), "--workers", "2"]
    undisturbed = [*score, "--predictions", str(tmp_path / "undisturbed")]
    subprocess.run(undisturbed, check=True, capture_output=True)
    options = ["--format", "parquet", "--model", str(model_folder), "--predictions", str(tmp_path / "undisturbed")]
    subprocess.run([agewatch, "export", "--out", str(tmp_path / "whole.parquet"), *options], check=True)
    whole, ages = exported(tmp_path / "whole.parquet")
    assert len(whole) == FILES

    small = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", RUNS, str(disk), str(tmp_path)]
    done = subprocess.run(
        [*small, *score, "--predictions", str(disk / "table")],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, f"This test mounts a tmpfs in a user namespace, which must be allowed: {done.stderr}"
    told = json.loads(done.stdout)
    for run in (told["full"], told["again"]):
        assert run["code"] == 1
        assert f"The disk that holds {disk / 'table'} is full" in run["stderr"]
        assert "panicked" not in run["stderr"]
        assert "Traceback" not in run["stderr"]
    assert told["kept"]["code"] == 0, told["kept"]
    kept, _ = exported(tmp_path / "kept.parquet")
    assert 0 < len(kept) < FILES
    assert kept == [row for row in whole if row["path"] in {row["path"] for row in kept}]
    assert told["roomy"]["code"] == 0, told["roomy"]
    assert json.loads(told["roomy"]["stdout"])["scored"] == FILES - len(kept)
    completed, completed_ages = exported(tmp_path / "roomy.parquet")
    assert completed == whole
    assert np.array(completed_ages) == pytest.approx(np.array(ages), abs=0.01)
