import os
from pathlib import Path

import pytest
from conftest import EXPECTED
from hypothesis import given
from hypothesis import strategies as st

from agewatch.errors import ImageError, UsageError
from agewatch.scoring.archive import FileRef, decode_path, encode_path, find, shards


def test_pictures_are_found_and_the_rest_is_counted_or_passed_over(archive: Path) -> None:
    found = find(archive)
    assert [file.path for file in found.files] == sorted(EXPECTED)
    assert found.ignored == 1  # notes.txt; Thumbs.db is litter
    assert found.unlisted == []


def test_links_are_not_followed(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(b"x")
    (archive / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (archive / "folder").symlink_to(tmp_path / "outside")
    (archive / "loop").symlink_to(archive)
    assert [file.path for file in find(archive).files] == sorted(EXPECTED)


@pytest.mark.parametrize("litter", [".DS_Store", "._face.jpg", "@eaDir/face.jpg", "__MACOSX/face.jpg"])
def test_litter_is_neither_found_nor_ignored(tmp_path: Path, litter: str) -> None:
    path = tmp_path / "archive" / litter
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    found = find(tmp_path / "archive")
    assert (found.files, found.ignored) == ([], 0)


@pytest.mark.parametrize(
    "name", [b"a b'c\"d.jpg", "jürgen 😀.jpg".encode(), b"latin\xe9.jpg", b"back\\slash\\xe9.jpg", b"x" * 240 + b".jpg"]
)
def test_names_of_any_bytes_round_trip_and_are_read(tmp_path: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(name)
    [found] = find(tmp_path).files
    assert decode_path(found.path) == name
    assert found.path.encode()  # valid UTF-8
    assert found.read(tmp_path) == (name, found)


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "disk.tif").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would end this process
    [found] = find(tmp_path).files
    with pytest.raises(ImageError, match="1,099,511,627,776 bytes") as refused:
        found.read(tmp_path)
    assert refused.value.code == "too_large"


def test_the_encoding_is_the_documented_one() -> None:
    assert encode_path("grün/ä.jpg".encode()) == "grün/ä.jpg"
    assert encode_path(b"a\xffb") == r"a\xffb"
    assert encode_path(rb"a\xffb") == r"a\\xffb"


def test_reading_what_is_gone_or_forbidden_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as gone:
        FileRef("gone.jpg", 1, 1).read(tmp_path)
    assert gone.value.code == "vanished"
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError) as folder:
        FileRef("folder.jpg", 1, 1).read(tmp_path)
    assert folder.value.code == "unreadable"


def test_a_listed_file_that_became_a_pipe_or_a_link_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    pipe, link = find(tmp_path).files
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="a pipe"):
        pipe.read(tmp_path)
    with pytest.raises(ImageError, match="a symbolic link now"):
        link.read(tmp_path)
    assert FileRef("b.jpg").read(tmp_path)[0] == b"x"  # named by its user, not listed


def test_the_log_of_a_table_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "predictions" / "_delta_log").mkdir(parents=True)
    (tmp_path / "predictions" / "_delta_log" / "_last_checkpoint").write_text("{}")
    assert find(tmp_path).files == []


def test_a_missing_folder_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        find(tmp_path / "missing")


def test_shards_cover_all_files_in_order() -> None:
    files = [FileRef(str(number), 0, 0) for number in range(10)]
    cut = list(shards(files, 4))
    assert [len(shard) for shard in cut] == [4, 4, 2]
    assert [file for shard in cut for file in shard] == files


@given(st.binary())
def test_any_name_survives_the_table(name: bytes) -> None:
    text = encode_path(name)
    assert decode_path(text) == name
    assert text.encode("utf-8").decode("utf-8") == text


@given(st.lists(st.binary(max_size=6), unique=True))
def test_different_names_stay_different(names: list[bytes]) -> None:
    assert len({encode_path(name) for name in names}) == len(names)
