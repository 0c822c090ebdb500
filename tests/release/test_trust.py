"""Whose code may run: what is on record, what differs, and what no model file may hold."""

import json
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from models import tiny_model

from agewatch.errors import ModelError
from agewatch.estimator.model import AgeModel
from agewatch.release import gate, records, store, trust
from agewatch.release.package import package

HOSTILE = b"open(%r, 'w').write('ran')\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one packaged model."""
    folder = tmp_path_factory.mktemp("made")
    return package(tiny_model(folder / "run"), version="1", store=folder / "store")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.parent, tmp_path / "store"))


def rewritten(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """The same model file with members replaced, added, or (None) left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in [*old.namelist(), *(change.keys() - set(old.namelist()))]:
            if (content := change.get(name, old.read(name) if name in old.namelist() else None)) is not None:
                new.writestr(name, content)
    return target


def test_what_was_packaged_here_may_run_and_what_came_with_agewatch(folder: Path) -> None:
    file = folder / "agewatch-1.mar"
    trust.require(folder, file)
    assert trust.differences(file) == []
    for carried in store.carried_stores():
        if (pointer := store.read_pointer(carried)) is not None:
            trust.require(folder, carried / pointer.file)


def test_the_same_weights_with_another_handler_are_not_promoted_until_a_person_trusts_them(folder: Path) -> None:
    ours = folder / "agewatch-1.mar"
    store.promote(folder, ours)
    theirs = rewritten(
        ours,
        folder / "agewatch-2.mar",
        {"age_handler.py": HOSTILE % "marker", "agewatch/estimator/raw.py": None, "torch.py": b"", "smoke/x.png": b""},
    )
    assert AgeModel.load(theirs).id == AgeModel.load(ours).id, "by its id it could not be told"
    for force in (False, True):
        with pytest.raises(ModelError, match=r"differs .* in age_handler.py, agewatch/estimator/raw.py, torch.py\."):
            gate.promote(folder, theirs, force=force)
    assert store.current(folder) == ours
    assert "differs from this agewatch's in age_handler.py" in trust.trust(folder, theirs)
    gate.promote(folder, theirs, force=True, by="somebody")
    [noted] = [json.loads(record.read_text()) for record in (folder / "code").glob(f"{store.sha256(theirs)}*")]
    assert (noted["file"], noted["why"]) == ("agewatch-2.mar", "trusted")
    assert noted["differs"] == ["age_handler.py", "agewatch/estimator/raw.py", "torch.py"]


@pytest.mark.parametrize("key", ["handler", "requirementsFile", "serializedFile"])
def test_a_manifest_that_names_something_else_to_run_differs(made: Path, tmp_path: Path, key: str) -> None:
    with zipfile.ZipFile(made) as archive:
        manifest = json.loads(archive.read(trust.MANIFEST))
    manifest["model"][key] = "smoke/face-1.png"
    other = rewritten(made, tmp_path / "other.mar", {trust.MANIFEST: json.dumps(manifest).encode()})
    assert trust.differences(other) == [trust.MANIFEST]


def test_a_file_packaged_elsewhere_with_our_code_still_wants_a_persons_word(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not on record .* Its code is that of this agewatch\. .*--trust-code"):
        trust.require(tmp_path / "another store", made)


def link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("agewatch/link.py")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model.json", "{}")


UNSOUND: dict[str, Callable[[zipfile.ZipFile], None]] = {
    r"member '../../slip\.py' would not lie": lambda archive: archive.writestr("../../slip.py", b""),
    r"member '/tmp/absolute\.py' would not lie": lambda archive: archive.writestr("/tmp/absolute.py", b""),
    r"member 'a\\\\\.\.\\\\b' would not lie": lambda archive: archive.writestr("a\\..\\b", b""),
    r"member 'C:/x' would not lie": lambda archive: archive.writestr("C:/x", b""),
    r"member 'agewatch/link\.py' is a link": link,
    r"member 'model\.json' stands in it 2 times": twice,
    r"member 'bomb' would be 50,000,000 bytes of": lambda archive: archive.writestr("bomb", bytes(50_000_000)),
    r"it has 1,\d\d\d members": lambda archive: [archive.writestr(f"m{n}", b"") for n in range(1000)] and None,
}


@pytest.mark.parametrize("what", UNSOUND)
def test_what_no_model_file_holds_is_refused_by_name_before_anything_is_unpacked(
    made: Path, tmp_path: Path, what: str
) -> None:
    file = Path(shutil.copy(made, tmp_path / "model.mar"))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        UNSOUND[what](archive)
    for opens in (AgeModel.load, lambda path: trust.trust(tmp_path / "store", path)):
        with pytest.raises(ModelError, match=f"nothing of it was unpacked: .*{what}"):
            opens(file)
    assert not (tmp_path / "store").exists()


def hidden_member(content: bytes) -> bytes:
    """A member that only who reads from the front finds: it stands between the last member and the directory."""
    name, body = b"sitecustomize.py", b"import os"
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(body), len(body), len(name), 0)
    end = content.rindex(b"PK\x05\x06")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    moved = (start + len(head + name + body)).to_bytes(4, "little")
    return content[:start] + head + name + body + content[start : end + 16] + moved + content[end + 20 :]


def other_name(content: bytes) -> bytes:
    """A member whose own head gives another name than the directory."""
    return content.replace(b"smoke/face-1.png", b"sitecustomize.py", 1)


def other_size(content: bytes) -> bytes:
    """A member whose own head gives another size than the directory."""
    place = content.index(b"model-config.yaml") - 30
    return content[: place + 22] + (7).to_bytes(4, "little") + content[place + 26 :]


@pytest.mark.parametrize("change", [hidden_member, other_name, other_size])
def test_a_zip_that_java_would_unpack_to_something_else_is_not_trusted(
    made: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "two-faced.mar"
    file.write_bytes(change(made.read_bytes()))
    with pytest.raises(ModelError, match=r"refused|can't be read"):
        trust.trust(tmp_path / "store", file)
    assert not records.may_run(tmp_path / "store", store.sha256(file))
