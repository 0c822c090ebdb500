"""A real server, asked why, asked by `score`, and killed meanwhile; and code that it does not run."""

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from damage import KINDS
from models import tiny_model
from pictures import ASTRONAUT, encoded, seven_faces
from PIL import Image
from servers import free_port

from agewatch.errors import ModelError
from agewatch.estimator.explain import CELLS
from agewatch.release import store
from agewatch.release.package import package
from agewatch.remote import Server
from agewatch.scoring import predictions
from agewatch.scoring.score import score_archive
from agewatch.scoring.scorer import Execution
from agewatch.serving.server import Served, Wanted, running
from agewatch.serving.torchserve import How


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return package(tiny_model(folder / "run"), version="1", store=folder / "store")


@pytest.fixture(scope="module")
def served(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with running(Wanted(How(home, 1, "f32"), mar.parent, mar, free_port())) as server:
        yield server


def explained(served: Served, picture: bytes, query: str = "", **headers: str) -> httpx.Response:
    headers |= {"Authorization": f"Bearer {served.token}"}
    url = f"{served.url}/explanations/agewatch{query}"
    return httpx.post(url, content=picture, headers=headers, timeout=120, trust_env=False)


def test_a_server_says_why_a_face_has_its_age(served: Served) -> None:
    picture = ASTRONAUT.read_bytes()
    answer = explained(served, picture).json()
    [face] = served.ask(picture)[1]["faces"]
    assert answer["age"] == pytest.approx(face["age"], abs=0.01)
    assert np.array(answer["years"]).shape == (CELLS, CELLS)
    assert (answer["model"], answer["faces"], answer["face"]) == (served.model, 1, 0)
    left, _, side = answer["area"]
    x, _, width, _ = face["box"]
    assert left <= x
    assert x + width <= left + side
    drawn = explained(served, picture, Accept="image/png")
    assert (drawn.headers["content-type"], Image.open(BytesIO(drawn.content)).format) == ("image/png", "PNG")
    whole = explained(served, picture, "?faces=crop").json()
    assert (whole["mode"], whole["area"]) == ("crop", [0, 0, 512])


def test_what_can_not_be_explained_is_said(served: Served) -> None:
    grey = encoded(Image.new("RGB", (200, 200), "grey"))
    for picture, query, status, code in (
        (grey, "", 422, "no_face"),
        (ASTRONAUT.read_bytes(), "?face=1", 400, "usage"),
        (ASTRONAUT.read_bytes(), "?face=-1", 400, "usage"),
        (b"text", "", 415, "unsupported"),
    ):
        answer = explained(served, picture, query)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert httpx.post(f"{served.url}/explanations/agewatch", content=grey, trust_env=False).status_code == 401


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Faces in all ways, damaged ones, copies, and one with a date and a camera."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for name, data in seven_faces().items():
        (folder / name).write_bytes(data)
        (folder / f"copy of {name}").write_bytes(data)
    face = Image.open(ASTRONAUT).convert("RGB")
    exif = Image.Exif()
    exif[0x0110], exif.get_ifd(0x8769)[0x9003] = "Kodak", "2020:02:03 04:05:06"
    (folder / "dated.jpg").write_bytes(encoded(face, "JPEG", exif=exif))
    for number in range(30):
        (folder / f"turned {number}.jpg").write_bytes(encoded(face.rotate(number - 15), "JPEG"))
    for name, damage in KINDS.items():
        (folder / f"{name}.jpg").write_bytes(damage(encoded(face, "JPEG"), np.random.default_rng(0)))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"no picture")
    (folder / "denied.jpg").write_bytes(b"")
    (folder / "grey.png").write_bytes(encoded(Image.new("RGB", (90, 90), "grey")))
    return folder


def test_an_archive_scored_by_a_server_that_is_killed_has_the_rows_of_the_local_engine(
    served: Served, mar: Path, archive: Path, tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill(done: int, total: int, _: object) -> None:
        """First a worker of TorchServe, then Java, while the rest is scored."""
        victim = ["model_service_worker", "ModelServer"][len(killed)] if done and len(killed) < 2 else None
        for child in psutil.Process().children(recursive=True) if victim and done < total else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                if victim in " ".join(child.cmdline()):
                    child.kill()
                    killed.append(victim)
                    break

    by_server = Execution(tmp_path / "cache", 1, progress=kill, server=Server(served.url, served.key_file))
    locally = Execution(tmp_path / "cache", 1, precision="f32")
    tables = {}
    for name, how in (("served", by_server), ("local", locally)):
        score_archive(archive, model_path=mar, table=tmp_path / name, how=how)
        rows = predictions.read(tmp_path / name).to_pylist()
        tables[name] = {(row["path"], row["face"]): row for row in rows}
    assert killed == ["model_service_worker", "ModelServer"]
    assert tables["served"].keys() == tables["local"].keys()
    assert {row["engine"] for row in tables["served"].values()} == {"torchserve-openvino-f32"}
    own = {"engine", "run_id", "scored_at", "arrived_at"}
    for key, local in tables["local"].items():
        row = tables["served"][key]
        for column in local.keys() - own:
            same = pytest.approx(local[column], abs=1e-3) if column == "age" else local[column]
            assert row[column] == same, f"{key}: {column}"


def test_a_server_does_not_run_the_code_of_a_file_that_is_not_on_record(mar: Path, tmp_path: Path) -> None:
    marker, theirs = tmp_path / "marker", tmp_path / "theirs.mar"
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(theirs, "w") as new:
        for name in old.namelist():
            code = f"open({str(marker)!r}, 'w')\n".encode() if name == "age_handler.py" else b""
            new.writestr(name, code + old.read(name))
    for named, pointed in ((theirs, mar), (None, theirs)):
        folder = tmp_path / f"store {named is None}"
        shutil.copytree(mar.parent, folder)
        shutil.copy(pointed, folder / "agewatch-2.mar")
        if named is None:  # it took the place of the one that was promoted
            store.promote(folder, folder / "agewatch-1.mar")
            shutil.copy(theirs, folder / "agewatch-1.mar")
        said = pytest.raises(ModelError, match=r"not on record|not the model that was promoted")
        with said, running(Wanted(How(tmp_path, 1), folder, named, free_port())):
            pass
    assert not marker.exists()
