"""Scoring on the machines of a Ray cluster: two raylets on this one, of which one is killed, as is the run itself."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pictures import encoded, torn
from PIL import Image

from agewatch.errors import AgewatchError
from agewatch.scoring import on_ray, pool, predictions
from agewatch.scoring.pool import Task

AGEWATCH = Path(sys.executable).with_name("agewatch")
CRASHES, HANGS = 13, 27
FACES = 160


@dataclass(frozen=True)
class Squares(Task[int, list[tuple[int, Any]]]):
    seconds: float

    def open(self) -> Callable[[Sequence[int], Callable[[], None]], list[tuple[int, Any]]]:
        def work(items: Sequence[int], starts: Callable[[], None]) -> list[tuple[int, Any]]:
            found = []
            for item in items:
                starts()
                if item == CRASHES:
                    ctypes.string_at(0)
                if item == HANGS:
                    time.sleep(1000)
                found.append((item, item**2))
            return found

        return work

    def give_up(self, item: int, why: str) -> list[tuple[int, Any]]:
        return [(item, why)]


@dataclass(frozen=True)
class Unready(Squares):
    def open(self) -> Any:
        raise AgewatchError("This machine has no Tuesday.")


def test_what_crashes_or_hangs_costs_only_itself_and_the_cluster_of_one_machine_is_on_loopback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool, "ITEM_SECONDS", 4.0)
    with on_ray.connected(None, memory_gb=2, workers=2) as cluster:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have agewatch, not its tests
        assert cluster.workers == 2
        shards = [range(start, start + 10) for start in range(0, 40, 10)]
        found = dict(pair for answer in cluster.run(Squares(0), shards, 0) for pair in answer)
        with pytest.raises(AgewatchError, match="no Tuesday"):
            list(cluster.run(Unready(0), shards, 0))
        ours = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
        listening = [c for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN and c.pid in ours]
    broken = {CRASHES: "crashed", HANGS: "took more than 4 seconds"}
    assert found == {item: item**2 for item in range(40)} | broken
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    assert capfd.readouterr().out == ""  # Ray says what breaks, on standard output


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "faces"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(FACES):
        blotches = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((1200, 1200))
        data = encoded(blotches, "JPEG", quality=95)
        (folder / f"{number:05}.jpg").write_bytes(torn(data) if number % 40 == 7 else data)
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.nodes = [made.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
        yield made
    finally:
        made.shutdown()


def command(faces: Path, *more: str) -> list[str]:
    return [str(AGEWATCH), "score", str(faces), "--faces", "crop", "--precision", "f32", "--json", *more]


def rows_of(home: Path) -> dict[str, dict[str, Any]]:
    rows = predictions.read(home / "predictions").to_pylist()
    assert len({(row["path"], row["face"]) for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def until_rows(home: Path, least: int) -> None:
    for _ in range(600):
        time.sleep(0.1)
        if (home / "predictions" / "_delta_log").is_dir():
            try:
                if predictions.read(home / "predictions", columns=["path"]).num_rows >= least:
                    return
            except AgewatchError:
                pass
    raise AssertionError("No rows came in a minute.")


def test_a_lost_machine_and_a_killed_run_leave_the_table_that_one_machine_makes(
    faces: Path, cluster: Any, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    local = subprocess.run(
        command(faces, "--workers", "2"), env={**os.environ, "AGEWATCH_HOME": str(here)}, capture_output=True
    )
    assert local.returncode == 0, local.stderr
    environment = {**os.environ, "AGEWATCH_HOME": str(there)}
    on_cluster = command(faces, "--runner", "ray", "--address", cluster.address)

    first = subprocess.Popen(on_cluster, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_rows(there, 1)
    first.kill()
    first.wait()
    second = subprocess.Popen(on_cluster, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_rows(there, FACES // 3)
    lost = cluster.nodes[0]
    for process in lost.all_processes["raylet"]:
        process.process.kill()
    out, complaint = second.communicate(timeout=300)
    assert second.returncode == 0, complaint
    said = json.loads(out)
    assert said["found"] == said["scored"] + said["skipped"] == FACES

    expected, found = rows_of(here), rows_of(there)
    same = ("status", "face", "content_hash", "width", "bytes", "mtime_ns", "model", "mode", "engine")
    assert {path: [row[name] for name in same] for path, row in found.items()} == {
        path: [row[name] for name in same] for path, row in expected.items()
    }
    ages = [(found[path]["age"], row["age"]) for path, row in expected.items() if row["status"] == "ok"]
    assert len(ages) == FACES - 4
    assert max(abs(one - other) for one, other in ages) < 0.01


def test_a_cluster_that_is_not_there_is_said_in_a_sentence(faces: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        command(faces, "--runner", "ray", "--address", "127.0.0.1:9"),
        env={**os.environ, "AGEWATCH_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "can't be used" in json.loads(ran.stdout)["error"]["message"]


def test_a_server_is_not_asked_from_a_cluster(faces: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        command(faces, "--runner", "ray", "--engine", "torchserve", "--url", "http://127.0.0.1:9"),
        env={**os.environ, "AGEWATCH_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "don't go together" in json.loads(ran.stdout)["error"]["message"]
