"""Runs that are killed at random moments, and runs at the same time: the table ends as an undisturbed run leaves it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pictures import encoded
from PIL import Image

from agewatch.scoring import predictions

KILLS, FACES = (30, 2000) if "AGEWATCH_SOAK" in os.environ else (3, 800)
AGEWATCH = Path(sys.executable).with_name("agewatch")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "faces"
    folder.mkdir()
    (folder.parent / "cache").mkdir()
    draw = np.random.default_rng(0)
    for number in range(FACES):
        blotches = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((200, 200))
        (folder / f"{number:05}.jpg").write_bytes(encoded(blotches, "JPEG"))
    return folder


def started(folder: Path, home: Path) -> "subprocess.Popen[bytes]":
    home.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (home / "cache").symlink_to(folder.parent / "cache")  # one conversion of the network for all
    environment = {**os.environ, "AGEWATCH_HOME": str(home)}
    command = [AGEWATCH, "score", folder, "--faces", "crop", "--workers", "2", "--precision", "f32"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **quiet)  # type: ignore[call-overload]


def finished(folder: Path, home: Path) -> tuple[float, dict[str, Any]]:
    begun = time.monotonic()
    assert started(folder, home).wait(600) == 0
    seconds = time.monotonic() - begun
    rows = predictions.read(home / "predictions").to_pylist()
    assert max(Counter((row["path"], row["face"]) for row in rows).values()) == 1
    return seconds, {row["path"]: row for row in rows}


@pytest.fixture(scope="module")
def calm(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, Any]]:
    home = tmp_path_factory.mktemp("calm")
    finished(faces, home / "first")  # converts the network
    return finished(faces, home / "second")


def same(rows: dict[str, Any], calm: dict[str, Any]) -> None:
    assert {path: row["status"] for path, row in rows.items()} == {path: row["status"] for path, row in calm.items()}
    assert max(abs(rows[path]["age"] - calm[path]["age"]) for path in calm) <= 0.01


def rows_so_far(home: Path) -> int:
    return len(predictions.read(home / "predictions")) if (home / "predictions" / "_delta_log").exists() else 0


def test_killed_at_random_moments_the_next_run_finishes(
    faces: Path, calm: tuple[float, dict[str, Any]], tmp_path: Path
) -> None:
    seconds, expected = calm
    chance = random.Random(3)
    partly = 0
    for number in range(KILLS):
        home = tmp_path / str(number)
        run = started(faces, home)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        victims = [run.pid, *(child.pid for child in psutil.Process(run.pid).children(recursive=True))]
        if number % 3 == 2 and len(victims) > 1:  # a worker: the run itself must cope
            os.kill(chance.choice(victims[1:]), signal.SIGKILL)
            run.wait(600)
        else:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            partly += 0 < rows_so_far(home) < len(expected)
            gone = psutil.wait_procs([psutil.Process(pid) for pid in victims[1:] if psutil.pid_exists(pid)], timeout=20)
            assert not [process for process in gone[1] if "spawn_main" in " ".join(process.cmdline())], "orphans"
        same(finished(faces, home)[1], expected)
    print(f"{KILLS} kills, {partly} of them left the table partly filled; a calm run takes {seconds:.1f} s")
    assert partly >= KILLS // 3


def test_two_runs_at_once_leave_the_table_of_one(
    faces: Path, calm: tuple[float, dict[str, Any]], tmp_path: Path
) -> None:
    both = [started(faces, tmp_path) for _ in range(2)]
    assert [run.wait(600) for run in both] == [0, 0]
    same(finished(faces, tmp_path)[1], calm[1])
