"""The model store: which model is used, promotion and roll back."""

import json
import zipfile
from pathlib import Path

import pytest
from models import model_file

from agewatch.errors import ModelError, UsageError
from agewatch.estimator.model import AgeModel
from agewatch.release import store


@pytest.fixture
def three_versions(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    for version in ("2", "10", "1"):
        model_file(folder, version)
    return folder


def test_an_empty_store_has_no_models_and_starts_at_version_one(tmp_path: Path) -> None:
    assert store.entries(tmp_path) == ([], {})
    assert store.next_version(tmp_path) == "1"
    assert store.current(tmp_path) is None
    assert store.read_pointer(tmp_path) is None


def test_versions_are_listed_as_numbers_and_counted_on(three_versions: Path) -> None:
    model_file(three_versions, "trial")
    found, damaged = store.entries(three_versions)
    assert not damaged
    assert [entry.file.name for entry in found] == [f"agewatch-{v}.mar" for v in ("1", "2", "10", "trial")]
    assert [entry.model for entry in found] == [AgeModel.load(entry.file).id for entry in found]
    assert [entry.bytes for entry in found] == [entry.file.stat().st_size for entry in found]
    assert not any(entry.current for entry in found)
    assert store.next_version(three_versions) == "11"


def test_damaged_files_are_told_apart_and_hide_no_sound_one(three_versions: Path) -> None:
    (three_versions / "agewatch-3.mar").write_bytes(b"no zip")
    with zipfile.ZipFile(three_versions / "agewatch-4.mar", "w") as archive:
        archive.writestr("model.json", "{}")
    (three_versions / "agewatch-5.mar").symlink_to("absent")
    found, damaged = store.entries(three_versions)
    assert [entry.file.name for entry in found] == [f"agewatch-{v}.mar" for v in ("1", "2", "10")]
    assert {file.name: reason.split(":")[0] for file, reason in damaged.items()} == {
        "agewatch-3.mar": f"The model {three_versions / 'agewatch-3.mar'} can't be read",
        "agewatch-4.mar": "The model's model.json is damaged",
        "agewatch-5.mar": f"There is no model at {three_versions / 'agewatch-5.mar'}.",
    }


def test_promotion_writes_the_pointer_that_lookup_follows(three_versions: Path) -> None:
    file = three_versions / "agewatch-2.mar"
    pointer = store.promote(three_versions, file)
    assert store.current(three_versions) == file
    assert store.resolve(None, three_versions) == file
    assert [entry.file for entry in store.entries(three_versions)[0] if entry.current] == [file]
    written = json.loads((three_versions / "current.json").read_text())
    told = ["file", "model", "sha256", "promoted_at", "previous", "by", "forced", "rolled_back"]
    assert list(written) == told
    assert (written["file"], written["model"], written["previous"]) == (file.name, pointer.model, None)
    assert pointer.model == AgeModel.load(file).id
    assert not list(three_versions.glob(".current*")), "the file written aside is left behind"


def test_a_given_model_goes_before_the_current_one(three_versions: Path) -> None:
    store.promote(three_versions, three_versions / "agewatch-2.mar")
    given = three_versions / "agewatch-1.mar"
    assert store.resolve(given, three_versions) == given
    with pytest.raises(UsageError, match="no model at"):
        store.resolve(three_versions / "agewatch-99.mar", three_versions)


def test_roll_back_walks_through_earlier_promotions_and_then_refuses(three_versions: Path) -> None:
    for version in ("1", "2", "10"):
        store.promote(three_versions, three_versions / f"agewatch-{version}.mar")
    names = [store.rollback(three_versions).file for _ in range(2)]
    assert names == ["agewatch-2.mar", "agewatch-1.mar"]
    assert store.current(three_versions) == three_versions / "agewatch-1.mar"
    with pytest.raises(UsageError, match="no earlier model"):
        store.rollback(three_versions)


def test_promoting_the_current_model_again_keeps_its_history(three_versions: Path) -> None:
    for version in ("1", "2"):
        store.promote(three_versions, three_versions / f"agewatch-{version}.mar")
    assert store.promote(three_versions, three_versions / "agewatch-2.mar").previous is not None
    assert store.rollback(three_versions).file == "agewatch-1.mar"


def test_a_promoted_file_that_changed_or_vanished_is_not_used(three_versions: Path) -> None:
    file = three_versions / "agewatch-2.mar"
    store.promote(three_versions, file)
    model_file(three_versions, "1").replace(file)
    with pytest.raises(ModelError, match="not the model that was promoted"):
        store.resolve(None, three_versions)
    file.unlink()
    with pytest.raises(ModelError, match="is missing"):
        store.resolve(None, three_versions)


def test_roll_back_to_a_vanished_file_leaves_the_pointer_alone(three_versions: Path) -> None:
    for version in ("1", "2"):
        store.promote(three_versions, three_versions / f"agewatch-{version}.mar")
    (three_versions / "agewatch-1.mar").unlink()
    with pytest.raises(ModelError, match="is missing"):
        store.rollback(three_versions)
    assert store.current(three_versions) == three_versions / "agewatch-2.mar"


def test_only_models_of_the_store_are_promoted(three_versions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not in the model store"):
        store.promote(three_versions, model_file(tmp_path / "elsewhere", "2"))
    (three_versions / "agewatch-3.mar").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="can't be read"):
        store.promote(three_versions, three_versions / "agewatch-3.mar")
    assert store.read_pointer(three_versions) is None


@pytest.mark.parametrize("content", ["", "[]", "null", '{"file": "agewatch-1.mar"}', '{"file": '])
def test_a_damaged_pointer_is_a_model_error(three_versions: Path, content: str) -> None:
    (three_versions / "current.json").write_text(content)
    with pytest.raises(ModelError, match=r"current\.json can.t be read"):
        store.resolve(None, three_versions)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where agewatch seems to be installed; its folder `agewatch` and its neighbours are searched."""
    root = tmp_path / "installed"
    (root / "agewatch").mkdir(parents=True)
    monkeypatch.setattr(store, "__file__", str(root / "agewatch" / "release" / "store.py"))
    return root


def test_without_a_current_model_the_wheels_starter_is_used(installed: Path, three_versions: Path) -> None:
    starter = model_file(installed / "agewatch" / "starter", "1")
    assert store.resolve(None, three_versions) == starter
    store.promote(three_versions, three_versions / "agewatch-2.mar")
    assert store.resolve(None, three_versions) == three_versions / "agewatch-2.mar"


def test_in_a_checkout_its_own_store_stands_in_for_the_starter(installed: Path, tmp_path: Path) -> None:
    own = installed / "model_store"
    starter, newer = model_file(own, "3"), model_file(own, "4")
    assert store.resolve(None, tmp_path / "nowhere") == starter
    store.promote(own, newer)
    assert store.resolve(None, tmp_path / "nowhere") == newer


def test_no_model_anywhere_is_said(installed: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model yet"):
        store.resolve(None, tmp_path / "nowhere")
