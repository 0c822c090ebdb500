from pathlib import Path

import pytest

from agewatch.errors import UsageError
from agewatch.scoring.demo import build_archive


def test_the_demo_is_built_once_and_its_files_stay(tmp_path: Path) -> None:
    archive = build_archive(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    assert len(files) == 11
    (archive / "readme.txt").unlink()
    assert build_archive(tmp_path) == archive
    assert (archive / "readme.txt").is_file()
    assert all(path.stat().st_mtime_ns == files[path] for path in files if path.name != "readme.txt")


def test_the_demo_keeps_out_of_a_folder_that_holds_other_things(tmp_path: Path) -> None:
    mine = tmp_path / "demo-archive" / "pictures" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"pictures/mine\.jpg"):
        build_archive(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
