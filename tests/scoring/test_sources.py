"""The same pictures in a folder, a zip, a tar and a bucket: the same rows, and the same guarantees."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import Buckets, buckets
from conftest import EXPECTED
from pictures import encoded
from PIL import Image

from agewatch.errors import GoneError
from agewatch.scoring import archives, predictions
from agewatch.scoring.score import Summary, score_archive
from agewatch.scoring.scorer import Execution
from agewatch.sources.folder import Folder
from agewatch.sources.packed import Tar, Zip

DATES = ("archive", "mtime_ns", "ctime_ns", "run_id", "scored_at", "arrived_at")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    with buckets(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, model_folder: Path, cache: Path) -> Callable[..., Summary]:
    def score(place: Path | str, **changed: Any) -> Summary:
        options = {"model_path": model_folder, "table": tmp_path / "table", "how": Execution(cache, 1)}
        return score_archive(place, **(options | changed))

    return score


def rows(tmp_path: Path, archive: str) -> list[dict[str, Any]]:
    """An archive's rows without what differs from place to place."""
    found = [row for row in predictions.read(tmp_path / "table").to_pylist() if row["archive"] == archive]
    return sorted(
        ({name: value for name, value in row.items() if name not in DATES} for row in found),
        key=lambda row: (row["path"], row["face"] or 0),
    )


def packed(folder: Path, path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as made:
            for file in sorted(folder.rglob("*")):
                made.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w") as made:
            made.add(folder, ".")
    return path


def test_rows_are_equal_wherever_the_pictures_lie_and_only_what_changed_is_read(
    run: Callable[..., Summary], archive: Path, tmp_path: Path, server: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = server.make("pictures")
    server.fill(url, archive)
    places = {
        "archive": archive,
        "a.zip": packed(archive, tmp_path / "a.zip"),
        "a.tar": packed(archive, tmp_path / "a.tar"),
        "pictures": url,
    }
    server.refuse(5)  # one request in five is answered 503
    for name, place in places.items():
        assert (run(place).archive, run(place).found) == (name, len(EXPECTED))
        assert rows(tmp_path, name) == rows(tmp_path, "archive")
    server.refuse(0)
    server.reads()

    with monkeypatch.context() as closed:  # a second run opens nothing
        for kind in (Folder, Zip, Tar):
            closed.setattr(kind, "read", None)
        for place in places.values():
            summary = run(place)
            assert (summary.scored, summary.skipped) == (0, len(EXPECTED))
    assert server.reads() == 0

    face = archive / "face.png"
    old = face.read_bytes()
    face.write_bytes(encoded(Image.new("RGB", (64, 64), "red")))
    os.utime(face, (2_000_000_000, 2_000_000_000))
    for name in ("a.zip", "a.tar"):
        packed(archive, tmp_path / name)
    server.put(url, "face.png", face.read_bytes())
    for name, place in places.items():
        assert run(place).scored == 1, name
        assert rows(tmp_path, name) == rows(tmp_path, "archive")
        assert [row["status"] for row in rows(tmp_path, name) if row["path"] == "face.png"] == ["no_face"]
    assert server.reads() == 1
    assert old != face.read_bytes()


def test_an_archive_that_was_packed_is_bound_to_its_name_and_nothing_is_scored_anew(
    run: Callable[..., Summary], archive: Path, tmp_path: Path
) -> None:
    run(archive)
    before = rows(tmp_path, "archive")
    made = packed(archive, tmp_path / "packed.zip")
    shutil.rmtree(archive)
    with pytest.raises(GoneError):
        run(archive)
    assert archives.move(tmp_path / "table", "archive", made).root == str(made)
    run(made, name="archive")
    assert rows(tmp_path, "archive") == before
    made.unlink()
    with pytest.raises(GoneError):
        run(made, name="archive")


def test_a_torn_tar_ends_with_1_and_nothing_in_it_is_gone(
    run: Callable[..., Summary], archive: Path, tmp_path: Path
) -> None:
    made = packed(archive, tmp_path / "a.tar")
    assert run(made).exit_code == 0 or run(made).exit_code == 3  # refused ones are in there
    made.write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    torn = run(made)
    assert torn.exit_code == 1
    assert "torn" in str(torn.problem)
    assert 0 < torn.found < len(EXPECTED)
    assert all(row["gone_at"] is None for row in rows(tmp_path, "a.tar"))
