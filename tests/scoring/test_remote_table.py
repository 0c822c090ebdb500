"""A predictions table in object storage, by a real S3 server on loopback: writers that are killed, and readers."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import Buckets, buckets
from rows import row

from agewatch.errors import TableError, UsageError
from agewatch.exports.export import export
from agewatch.scoring import archives, baseline, beside, predictions
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer

WRITERS, FILES = 4, 40
WRITE = """
import sys
from pathlib import Path
sys.path.append(sys.argv[3])
from rows import row
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer
writer = Writer(Path(sys.argv[1]), Key("a", "m-1@0", "detect"), root="s3://pictures")
print("open", flush=True)
sys.stdin.readline()
first = int(sys.argv[2])
for start in range(first, first + 40, 4):
    paths = [f"{number:04}.jpg" for number in range(start, start + 4)]
    rows = [(path, face) for path in paths if path not in writer.known for face in (0, 1)]
    writer.write([row(path, face=face, mtime_ns=1, content_hash=f"{int(path[:4]):064x}") for path, face in rows])
"""


def kill_two_of_four(table: Path, first: int, draw: random.Random) -> int:
    """Four writers at once write the same files; two are killed at some moment. Returns how many still ran then."""
    command = [sys.executable, "-c", WRITE, str(table), str(first), str(Path(__file__).parents[1])]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(WRITERS)
    ]
    for writer in running:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline() == "open\n", writer.stderr.read()
    for writer in running:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    hit = 0
    for writer in running[:2]:
        time.sleep(draw.uniform(0, 0.5))
        hit += writer.poll() is None
        writer.kill()
    for place, writer in enumerate(running):
        _, told = writer.communicate()
        assert place < 2 or writer.returncode == 0, told
    return hit


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    with buckets(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def table(server: Buckets, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Path(f"{server.make(f'table-{abs(hash(request.node.name)) % 10**6}')}/deep/predictions")


def test_writers_that_are_killed_lose_and_double_nothing(table: Path) -> None:
    draw, rounds = random.Random(3), 2
    assert sum(kill_two_of_four(table, number * FILES, draw) for number in range(rounds))
    found = Counter((each["path"], each["face"]) for each in predictions.read(table).to_pylist())
    assert found == {(f"{number:04}.jpg", face): 1 for number in range(rounds * FILES) for face in (0, 1)}


def test_of_two_writers_at_once_the_second_sees_what_the_first_wrote(table: Path) -> None:
    key = Key("a", "m-1@0", "detect")
    first, second = Writer(table, key, root="s3://pictures"), Writer(table, key, root="s3://pictures")
    assert first.write([row("a.jpg"), row("b.jpg")]) == 2
    assert second.write([row("b.jpg"), row("c.jpg")]) == 1
    assert sorted(predictions.read(table)["path"].to_pylist()) == ["a.jpg", "b.jpg", "c.jpg"]
    with pytest.raises(UsageError, match="already stands for s3://pictures"):
        Writer(table, key, root="s3://others")


def test_a_table_in_storage_is_read_exported_accepted_and_moved_as_any(table: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="There is no predictions table at"):
        predictions.read(table)
    key = Key("a", "m-1@0", "detect")
    Writer(table, key, root="s3://pictures").write([row("a.jpg"), row("b.jpg", face=None, status="no_face")])
    assert export(table, tmp_path / "rows.csv", format="csv", model="m-1@0") == 2
    rows = predictions.read(table)
    night = rows["arrived_at"][0].as_py().date()
    baseline.accept(table, "a", night, night)
    assert baseline.accepted(table, "a")[0].first == night
    assert archives.move(table, "a", tmp_path).root == str(tmp_path)
    with pytest.raises(UsageError, match="object storage"):
        archives.remove(table, "a", tmp_path / "reports")
    assert beside.folder_of(table, "a").is_relative_to(Path(os.environ["AGEWATCH_HOME"]))
    assert not Path("s3:").exists()
