import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import EXPECTED
from hypothesis import given
from hypothesis import strategies as st

from agewatch.errors import ImageError, UsageError
from agewatch.scoring.pool import shards
from agewatch.sources import door
from agewatch.sources import folder as folders
from agewatch.sources.folder import Folder, file_system
from agewatch.sources.source import FileRef, Listing, decode_path, encode_path


def find(root: Path, exclude: Sequence[str] = ()) -> Listing:
    return door.find(door.at(root), exclude)


def test_pictures_are_found_and_the_rest_is_counted_or_passed_over(archive: Path) -> None:
    found = find(archive)
    assert [file.path for file in found.files] == sorted(EXPECTED)
    assert found.ignored == {".txt": 1}  # notes.txt; Thumbs.db is litter
    assert found.unlisted == []


def test_links_are_not_followed(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(b"x")
    (archive / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (archive / "folder").symlink_to(tmp_path / "outside")
    (archive / "loop").symlink_to(archive)
    assert [file.path for file in find(archive).files] == sorted(EXPECTED)


LITTER = """
    .DS_Store  ._face.jpg  @eaDir/face.jpg  __MACOSX/face.jpg  #recycle/face.jpg  @Recycle/face.jpg  .@__thumb/face.jpg
    .Trash-1000/files/face.jpg  .Trashes/501/face.jpg  .snapshot/nightly.0/face.jpg  .zfs/snapshot/a/face.jpg
    $RECYCLE.BIN/S-1-5/face.jpg  .dtrash/face.jpg  lost+found/face.jpg  @GMT-2026.11.02-01.00.00/face.jpg
    Previews.lrdata/0/face.jpg  deep/er/.recycle/face.jpg  THUMBS.DB  .picasaoriginals/face.jpg  ~snapshot/face.jpg
"""


@pytest.mark.parametrize("litter", LITTER.split())
def test_litter_is_neither_found_nor_ignored(tmp_path: Path, litter: str) -> None:
    path = tmp_path / "archive" / litter
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    found = find(tmp_path / "archive")
    assert (found.files, found.ignored) == ([], {})


@pytest.mark.parametrize(
    "name", [b"a b'c\"d.jpg", "jürgen 😀.jpg".encode(), b"latin\xe9.jpg", b"back\\slash\\xe9.jpg", b"x" * 240 + b".jpg"]
)
def test_names_of_any_bytes_round_trip_and_are_read(tmp_path: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(name)
    [found] = find(tmp_path).files
    assert decode_path(found.path) == name
    assert found.path.encode()  # valid UTF-8
    assert Folder(tmp_path).read(found) == (name, found)


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "disk.tif").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would end this process
    [found] = find(tmp_path).files
    with pytest.raises(ImageError, match="1,099,511,627,776 bytes") as refused:
        Folder(tmp_path).read(found)
    assert refused.value.code == "too_large"


def test_the_encoding_is_the_documented_one() -> None:
    assert encode_path("grün/ä.jpg".encode()) == "grün/ä.jpg"
    assert encode_path(b"a\xffb") == r"a\xffb"
    assert encode_path(rb"a\xffb") == r"a\\xffb"


def test_reading_what_is_gone_or_forbidden_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as gone:
        Folder(tmp_path).read(FileRef("gone.jpg", 1, 1))
    assert gone.value.code == "vanished"
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError) as folder:
        Folder(tmp_path).read(FileRef("folder.jpg", 1, 1))
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
        Folder(tmp_path).read(pipe)
    with pytest.raises(ImageError, match="a symbolic link now"):
        Folder(tmp_path).read(link)
    assert Folder(tmp_path).read(FileRef("b.jpg"))[0] == b"x"  # named by its user, not listed


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


def test_names_that_only_look_like_litter_are_found(tmp_path: Path) -> None:
    names = ["recycle/a.jpg", "my.lrdata.jpg", "snapshot/b.jpg", ".Trash-1000x/c.jpg", "2020@eaDir/d.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [file.path for file in find(tmp_path).files] == sorted(names)


def test_excluded_files_and_folders_are_litter_too(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "private/c.jpg", "deep/private/d.jpg", "deep/e.jpg", "deep/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find(tmp_path, ["private/", "*.png", "/deep/e.jpg", "*.txt"])
    assert ([file.path for file in found.files], found.ignored) == (["a.jpg"], {})


def test_what_is_ignored_is_told_by_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PDF", "c.pdf", "d.mp4", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    assert find(tmp_path).ignored == {".pdf": 2, ".mp4": 1, "": 1}


def test_dates_that_no_table_holds_are_left_out(in_memory: Path) -> None:
    """In the years 1601 (of Windows' dates) and 2446 (the last of ext4's)."""
    for name, seconds in (("a.jpg", -11_644_473_600), ("b.jpg", 15_032_385_535), ("c.jpg", 1_000_000_000)):
        (in_memory / name).write_bytes(b"x")
        os.utime(in_memory / name, (0, seconds))
    assert [file.mtime_ns for file in find(in_memory).files] == [None, None, 10**18]
    assert all(file.ctime_ns for file in find(in_memory).files)
    data, opened = Folder(in_memory).read(find(in_memory).files[1])
    assert (data, opened) == (b"x", find(in_memory).files[1])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs, which keeps dates of any year."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_the_change_time_is_taken_where_the_file_system_keeps_it(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_system(in_memory) == "tmpfs"
    assert file_system(Path("/proc/self")) == "proc"
    (in_memory / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(folders, "file_system", lambda _root: "cifs")
    [file] = find(in_memory).files
    assert (file.bytes, file.ctime_ns) == (1, None)
    assert Folder(in_memory).read(file)[1] == file


def test_an_entry_that_hides_its_kind_is_a_file_that_will_not_be_read() -> None:
    """In a folder that may be listed but not searched, on a file system that gives no kinds."""

    class Hidden:
        name, path = b"face.jpg", b"folder/face.jpg"

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            raise PermissionError(13, "Permission denied")

        stat = is_dir

    assert folders._kind(Hidden()) == "file"  # type: ignore[arg-type]
    assert folders._file(Hidden(), "face.jpg", True) == FileRef("face.jpg")  # type: ignore[arg-type]


@given(st.binary())
def test_any_name_survives_the_table(name: bytes) -> None:
    text = encode_path(name)
    assert decode_path(text) == name
    assert text.encode("utf-8").decode("utf-8") == text


@given(st.lists(st.binary(max_size=6), unique=True))
def test_different_names_stay_different(names: list[bytes]) -> None:
    assert len({encode_path(name) for name in names}) == len(names)
