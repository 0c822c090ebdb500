"""What several test files share: a tiny model, an archive with one file of every kind, isolated settings."""

import os
from pathlib import Path

import hypothesis
import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # workers of tests share few cores

from desks import desk, mar  # noqa: F401  fixtures
from models import tiny_model
from pictures import ASTRONAUT, encoded, torn
from PIL import Image
from scripted import script  # noqa: F401  a fixture
from servers import api, here  # noqa: F401  fixtures

hypothesis.settings.register_profile("agewatch", deadline=None)  # machines are shared: no assertion is timed
hypothesis.settings.load_profile("agewatch")

QUICK = [
    "test_house",
    "test_spec",
    "test_images",
    "test_faces",
    "test_model",
    "test_engine",
    "test_folder",
    "test_packed",
    "test_predictions",
    "test_export",
    "test_writer",
    "test_zoo",
    "test_metrics",
    "test_calibration",
    "test_sources",
    "test_card",
    "test_recipe",
    "test_provenance",
    "test_candidates",
    "test_store",
    "test_display",
    "test_tiff",
    "test_bmp",
    "test_jpeg2000",
    "test_raw",
    "test_evidence",
    "test_schedule",
]
"""The files of the quick lane, `-m quick`: no server, no command, and at most 90 seconds together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of converted networks for the whole suite."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AGEWATCH_HOME and an empty model store of the test's own."""
    monkeypatch.setenv("AGEWATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGEWATCH_MODEL_STORE", str(tmp_path / "store"))
    return tmp_path / "home"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A face, the same face turned by EXIF, no face, and files that are torn, empty, a text, and litter."""
    folder = tmp_path / "archive"
    (folder / "deep" / "er").mkdir(parents=True)
    face = Image.open(ASTRONAUT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "face.png").write_bytes(encoded(face))
    (folder / "deep" / "turned.JPG").write_bytes(encoded(face.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif))
    (folder / "deep" / "er" / "grey").write_bytes(encoded(Image.new("RGB", (300, 200), "grey")))
    (folder / "torn.jpg").write_bytes(torn(encoded(face, "JPEG")))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"no picture at all")
    (folder / "notes.txt").write_bytes(b"ignored")
    (folder / "Thumbs.db").write_bytes(b"litter")
    return folder


EXPECTED = {
    "face.png": "ok",
    "deep/turned.JPG": "ok",
    "deep/er/grey": "no_face",
    "torn.jpg": "truncated",
    "empty.jpg": "empty",
    "text.jpg": "unsupported",
}
