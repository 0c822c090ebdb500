"""Zip and tar files, read in place."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.sources import door
from agewatch.sources.packed import Tar, Zip
from agewatch.sources.source import FileRef, Sieve, Source

FILES = {
    b"a.jpg": b"first",
    b"deep/er/b.PNG": b"second",
    "grün/ü.jpg".encode(): b"third",
    b"latin\xe9.jpg": b"fourth",
    b"back\\slash.jpg": b"fifth",
    b"none": b"",
}
OTHERS = {
    b"notes.txt": b"x",
    b"__MACOSX/._a.jpg": b"x",
    b"@eaDir/a.jpg": b"x",
    b"deep/inner.zip": b"x",
    b"Thumbs.db": b"",
}


class Raw(zipfile.ZipInfo):
    """An entry whose name is any bytes, as Info-ZIP writes them: no flag says that they are UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("latin-1"), self.flag_bits


def a_zip(path: Path, files: Mapping[bytes, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, data in files.items():
            entry = Raw(name.decode("latin-1"), (2026, 1, 2, 3, 4, 6))
            entry.compress_type = compression
            made.writestr(entry, data)
    return path


def a_tar(path: Path, files: Mapping[bytes, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(os.fsdecode(name))
            entry.size, entry.mtime = len(data), 1_700_000_000
            made.addfile(entry, io.BytesIO(data))
    return path


def a_folder(path: Path, files: Mapping[bytes, bytes]) -> Path:
    for name, data in files.items():
        file = Path(os.fsdecode(os.path.join(os.fsencode(path), name)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def held(source: Source) -> dict[str, bytes]:
    """What a source lists, read in another process's copy of it."""
    copy = pickle.loads(pickle.dumps(source))
    return {file.path: copy.read(file)[0] for file in door.find(source).files}


def refusal(source: Source, file: FileRef) -> ImageError:
    with pytest.raises(ImageError) as refused:
        source.read(file)
    return refused.value


@pytest.fixture(params=["a.zip", "stored.zip", "a.tar", "gnu.tar"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    files, path = FILES | OTHERS, tmp_path / request.param
    if path.suffix == ".zip":
        return a_zip(path, files, zipfile.ZIP_STORED if path.stem == "stored" else zipfile.ZIP_DEFLATED)
    return a_tar(path, files, tarfile.GNU_FORMAT if path.stem == "gnu" else tarfile.PAX_FORMAT)


def test_an_archive_lists_and_reads_what_the_same_folder_would(packed: Path, tmp_path: Path) -> None:
    folder = door.find(door.at(a_folder(tmp_path / "folder", FILES | OTHERS)))
    found = door.find(door.at(packed))
    assert [(file.path, file.bytes) for file in found.files] == [(file.path, file.bytes) for file in folder.files]
    assert (found.ignored, found.unlisted, found.damage) == (folder.ignored, [], None)
    assert found.ignored == {".txt": 1, ".zip": 1}
    assert found.nested == ["deep/inner.zip"]
    assert held(door.at(packed)) == held(door.at(tmp_path / "folder"))
    assert all(file.mtime_ns for file in found.files)
    excluded = door.find(door.at(packed), ["deep/", "*.jpg"])
    assert [file.path for file in excluded.files] == ["none"]


def test_a_row_is_of_the_member_that_was_read(packed: Path) -> None:
    source = door.at(packed)
    [first, *_] = door.find(source).files
    assert source.read(first)[1] == first
    assert source.read(FileRef(first.path)) == (b"first", first)
    assert refusal(source, FileRef("other.jpg")).code == "vanished"


def test_an_archive_that_is_replaced_while_it_is_read_gives_no_wrong_bytes(tmp_path: Path) -> None:
    for make in (a_zip, a_tar):
        path = make(tmp_path / "a", {b"a.jpg": b"A" * 5_000, b"b.jpg": b"B" * 7_000})
        source = door.at(path)
        files = door.find(source).files
        make(tmp_path / "new", {b"b.jpg": b"C" * 7_000}).replace(path)
        copy = pickle.loads(pickle.dumps(source))
        data, now = copy.read(files[1])
        assert data == b"C" * 7_000
        assert now.bytes == 7_000
        assert refusal(copy, files[0]).code == "vanished"


def test_the_last_of_equal_paths_counts_and_leading_dots_do_not(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("a.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a.jpg", b"new")
    assert held(door.at(tmp_path / "a.zip")) == {"a.jpg": b"new"}
    assert held(door.at(a_tar(tmp_path / "a.tar", {b"a.jpg": b"old", b"./a.jpg": b"new"}))) == {"a.jpg": b"new"}


def test_a_member_that_would_lead_out_is_a_path_like_any_other(tmp_path: Path) -> None:
    files = {b"../../out.jpg": b"x", b"/root.jpg": b"y"}
    for source in (door.at(a_zip(tmp_path / "a.zip", files)), door.at(a_tar(tmp_path / "a.tar", files))):
        assert held(source) == {"../../out.jpg": b"x", "root.jpg": b"y"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def test_links_in_a_tar_are_the_file_once_more_or_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        entry = tarfile.TarInfo("a.jpg")
        entry.size = 1
        made.addfile(entry, io.BytesIO(b"x"))
        for name, kind in (
            ("hard.jpg", tarfile.LNKTYPE),
            ("soft.jpg", tarfile.SYMTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "a.jpg"
            made.addfile(entry)
    source = door.at(tmp_path / "a.tar")
    assert held(source) == {"a.jpg": b"x", "hard.jpg": b"x"}
    assert door.find(source).ignored == {".jpg": 2}


def test_an_encrypted_member_is_denied(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "a.zip", {b"a.jpg": b"x", b"b.jpg": b"y"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # its flag, in the directory
    path.write_bytes(data)
    first, second = door.find(source := door.at(path)).files
    assert refusal(source, first).code == "denied"
    assert "encrypted" in str(refusal(source, first))
    assert source.read(second)[0] == b"y"


def test_a_member_that_claims_less_or_more_than_it_holds_gives_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_zip(tmp_path / "a.zip", {b"bomb.jpg": bytes(10_000_000)})
    source = door.at(path)
    [bomb] = door.find(source).files
    monkeypatch.setattr("agewatch.sources.packed.MAX_BYTES", 1_000_000)
    assert refusal(source, bomb).code == "too_large"
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", 1_000)  # the size that the directory claims
    path.write_bytes(data)
    [bomb] = door.find(source).files
    assert refusal(source, bomb).code == "unreadable"


def test_a_torn_tar_gives_what_is_before_the_tear_and_says_so(tmp_path: Path) -> None:
    whole = a_tar(tmp_path / "a.tar", {b"a.jpg": b"A" * 2_000, b"b.jpg": b"B" * 2_000, b"c.jpg": b"C"}).read_bytes()
    for end, paths in (
        (4_000, ["a.jpg", "b.jpg"]),
        (3_072, ["a.jpg", "b.jpg"]),
        (2_900, ["a.jpg"]),
        (2_560, ["a.jpg"]),
    ):
        (tmp_path / "torn.tar").write_bytes(whole[:end])
        source = door.at(tmp_path / "torn.tar")
        files = list(source.walk(found := Sieve()))
        assert [file.path for file in files] == paths, end
        assert "torn" in str(found.damage)
        assert found.may_hold("c.jpg")
        assert source.read(files[0])[0] == b"A" * 2_000
        if len(paths) == 2:
            assert refusal(source, files[1]).code == "truncated"
    garbled = bytearray(whole)
    garbled[2_560:3_072] = b"!" * 512  # the second header
    (tmp_path / "torn.tar").write_bytes(garbled)
    assert "torn" in str(door.find(door.at(tmp_path / "torn.tar")).damage)


def test_a_zip_without_its_directory_is_told_and_nothing_is_guessed(tmp_path: Path) -> None:
    path = a_zip(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(AgewatchError, match=r"not copied to its end.*zip -FF"):
        door.find(door.at(path))


def test_files_that_are_no_archive_or_can_not_be_read_in_place_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="no zip or tar"):
        door.at(tmp_path / "a.jpg")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(UsageError, match=r"packed with gzip.*unpack it"):
        door.at(tmp_path / "a.tar.gz")
    (tmp_path / "empty.tar").write_bytes(bytes(10_240))
    assert door.find(door.at(tmp_path / "empty.tar")).files == []
    with pytest.raises(UsageError, match="no file"):
        door.at(tmp_path / "gone.zip").require_there()


def test_whatever_bytes_are_changed_only_our_own_errors_come(tmp_path: Path) -> None:
    draw = random.Random(7)
    for make, kind in ((a_zip, Zip), (a_tar, Tar)):
        whole = make(tmp_path / "a", FILES).read_bytes()
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            (tmp_path / "b").write_bytes(data[: draw.randint(0, len(data)) if draw.random() < 0.3 else None])
            source = kind(tmp_path / "b")
            try:
                files = door.find(source).files
            except AgewatchError:
                continue
            for file in files:
                with suppress(ImageError):
                    source.read(file)
