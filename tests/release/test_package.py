"""A packaged model: whole, self-describing, never overwritten."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from models import tiny_model
from pictures import torn

import agewatch
from agewatch.errors import ModelError, UsageError
from agewatch.estimator.model import AgeModel, read_reference
from agewatch.release.package import package


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def mar(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(run_folder, version="7", store=tmp_path_factory.mktemp("store"))


def test_the_archive_holds_the_model_under_its_new_version(run_folder: Path, mar: Path) -> None:
    assert mar.name == "agewatch-7.mar"
    trained, packaged = AgeModel.load(run_folder), AgeModel.load(mar)
    assert packaged.id == f"agewatch-7@{trained.hash12}"
    assert packaged.weights == trained.weights
    assert read_reference(mar) == (run_folder / "reference.parquet").read_bytes()


def test_the_archive_holds_the_code_that_made_it_and_nothing_else(mar: Path) -> None:
    code = Path(agewatch.__file__).parent
    with zipfile.ZipFile(mar) as archive:
        assert set(archive.namelist()) == {
            "MAR-INF/MANIFEST.json",
            "age_handler.py",
            "model-config.yaml",
            "model.json",
            "model.safetensors",
            "reference.parquet",
            "splits.parquet",
            "agewatch/__init__.py",
            "agewatch/errors.py",
            *(f"agewatch/estimator/{source.name}" for source in (code / "estimator").glob("*.py")),
            *(f"smoke/{name}" for name in ("face-1.png", "face-2.png", "face-3.png", "answers.json")),
        }
        assert archive.read("agewatch/estimator/model.py") == (code / "estimator" / "model.py").read_bytes()
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
    assert manifest == {
        "modelName": "agewatch",
        "modelVersion": "7",
        "handler": "age_handler.py",
        "configFile": "model-config.yaml",
    }


SMOKE = """
import json, sys
from pathlib import Path
import age_handler, agewatch.estimator.model

class Context:
    system_properties = {"model_dir": sys.argv[1]}
    def get_all_request_header(self, index): return {}
    def set_response_status(self, *_): pass
    def set_response_content_type(self, *_): pass

handler = age_handler.AgeHandler()
handler.initialize(Context())
pictures = sorted(Path(sys.argv[1], "smoke").glob("*.png"))
answers = handler.handle([{"body": picture.read_bytes()} for picture in pictures], Context())
faces = {picture.name: answer["faces"] for picture, answer in zip(pictures, answers)}
print(json.dumps([agewatch.estimator.model.__file__, faces]))
"""


def test_away_from_the_checkout_the_archives_own_code_gives_its_own_answers(mar: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(model)
    done = subprocess.run(
        [sys.executable, "-c", SMOKE, str(model)],
        cwd=tmp_path, env={"PYTHONPATH": str(model), "AGEWATCH_PRECISION": "f32"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    origin, faces = json.loads(done.stdout.splitlines()[-1])
    assert origin == str(model / "agewatch" / "estimator" / "model.py")
    expected = json.loads((model / "smoke" / "answers.json").read_text())
    assert list(faces) == list(expected) == ["face-1.png", "face-2.png", "face-3.png"]
    for name, [face] in faces.items():
        [known] = expected[name]
        assert face["age"] == pytest.approx(known["age"], abs=0.01)
        assert face["box"] == pytest.approx(known["box"], abs=0.1)


def test_the_handler_needs_nothing_but_the_archive(mar: Path, tmp_path: Path) -> None:
    """TorchServe puts the unpacked archive first on the path; the handler must load from there alone."""
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(tmp_path / "model")
    look = "import age_handler, agewatch, sys; print(agewatch.__file__); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "model")},
        capture_output=True,
        text=True,
        check=True,
    )
    origin, modules = done.stdout.splitlines()
    assert origin == str(tmp_path / "model" / "agewatch" / "__init__.py")
    assert not {"deltalake", "pydantic_settings", "typer", "ts"} & set(modules.split())


def test_a_version_is_never_overwritten(run_folder: Path, mar: Path) -> None:
    before = mar.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        package(run_folder, version="7", store=mar.parent)
    assert mar.read_bytes() == before


@pytest.mark.parametrize("version", ["", "../1", "a b", ".hidden", "ä"])
def test_a_malformed_version_is_refused(run_folder: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(UsageError, match="A version is made of"):
        package(run_folder, version=version, store=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no reference", "torn weights"])
def test_a_damaged_folder_leaves_nothing_in_the_store(tmp_path: Path, damage: str) -> None:
    folder = tiny_model(tmp_path / "run")
    if damage == "no reference":
        (folder / "reference.parquet").unlink()
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(torn(weights.read_bytes()))
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(ModelError):
        package(folder, version="1", store=store)
    assert not list(store.iterdir())
