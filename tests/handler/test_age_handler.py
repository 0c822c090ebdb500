"""The TorchServe handler alone, with a stand-in for its context; serving/test_torchserve.py has the real one."""

import json
import math
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_model
from pictures import ASTRONAUT, encoded, seven_faces, torn
from PIL import Image
from zoo import zoo

from agewatch.estimator.spec import Band, Calibration
from agewatch.release.package import package
from handler.age_handler import CHIPS_AT_ONCE, AgeHandler


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.open(ASTRONAUT).convert("RGB")


@pytest.fixture(scope="module")
def faces() -> dict[str, bytes]:
    return seven_faces()


class Context:
    """What AgeHandler uses of TorchServe's context; the real one is exercised below."""

    def __init__(self, folder: Path, headers: list[dict[str, Any]], *, is_png: bool = False) -> None:
        self.is_png = is_png
        self.system_properties = {"model_dir": str(folder)}
        self.headers = headers
        self.statuses = [200] * len(headers)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self.headers[idx]

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        assert value == ("application/json" if self.statuses[idx] != 200 or not self.is_png else "image/png")


class Client:
    """Sends a batch to a handler as TorchServe would and returns (status, answer) of each request."""

    def __init__(self, folder: Path) -> None:
        self.handler = AgeHandler()
        self.handler.initialize(Context(folder, []))

    def ask(self, *rows: dict[str, Any], headers: dict[str, Any] | None = None) -> list[tuple[int, dict[str, Any]]]:
        context = Context(Path(), [headers or {}] * len(rows))
        answers = self.handler.handle(list(rows), context)
        assert len(answers) == len(rows)
        return list(zip(context.statuses, json.loads(json.dumps(answers)), strict=True))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("alone")
    with zipfile.ZipFile(package(tiny_model(folder / "run"), version="1", store=folder)) as archive:
        archive.extractall(folder / "model")
    return Client(folder / "model")


def ages(answer: dict[str, Any]) -> list[float]:
    return [face["age"] for face in answer["faces"]]


def test_a_face_is_found_and_described(client: Client, faces: dict[str, bytes]) -> None:
    [(status, answer)] = client.ask({"body": bytearray(faces["whole.png"])})
    assert status == 200
    assert list(answer) == [
        "model", "mode", "engine", "width", "height", "captured_at", "camera", "rendition", "faces"
    ]  # fmt: skip
    assert re.fullmatch(r"agewatch-1@[0-9a-f]{12}", answer["model"])
    assert (answer["width"], answer["height"]) == (512, 512)
    [face] = answer["faces"]
    assert list(face) == ["box", "score", "brightness", "contrast", "sharpness", "age", "age_low", "age_high"]
    x, y, w, h = face["box"]
    assert x < 225 < x + w, "the nose is outside the box"
    assert y < 120 < y + h, "the nose is outside the box"
    assert 0.7 <= face["score"] <= 1
    assert 0 <= face["age_low"] <= face["age"] <= face["age_high"] <= 100


def test_an_explanation_is_asked_of_chips_and_a_batch_may_hold_both(client: Client) -> None:
    chip = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).tobytes()
    asked = {"chips": "crop", "explain": "True"}
    context = Context(Path(), [asked, {"chips": "crop", "explain": "False"}, {"explain": "True"}])
    why, ages_of, picture = client.handler.handle([{"body": chip}, {"body": chip}, {"body": chip}], context)
    assert context.statuses == [200, 200, 400], picture
    assert isinstance(why, dict)
    assert isinstance(ages_of, dict)
    assert why["age"] == pytest.approx(ages(ages_of)[0], abs=0.01)
    assert np.array(why["years"]).any()
    context = Context(Path(), [asked | {"Accept": "text/html, image/png"}], is_png=True)
    [overlay] = client.handler.handle([{"body": chip}], context)
    assert isinstance(overlay, bytes)
    assert Image.open(BytesIO(overlay)).format == "PNG"


def test_one_bad_picture_harms_no_other(client: Client, faces: dict[str, bytes]) -> None:
    good = [{"body": data} for data in faces.values()]
    alone = [client.ask(row)[0] for row in good]
    [*mixed] = client.ask(*good[:3], {"body": torn(faces["whole.jpg"])}, {"body": b""}, *good[3:])
    assert [status for status, _ in mixed] == [200, 200, 200, 422, 422, 200, 200, 200, 200]
    together = [answer for status, answer in mixed if status == 200]
    for (_, expected), answer in zip(alone, together, strict=True):
        assert ages(answer) == pytest.approx(ages(expected), abs=0.01)
        assert answer["width"] == expected["width"]
    assert len({round(ages(answer)[0], 1) for answer in together}) > 4, "the pictures' ages hardly differ"


@pytest.mark.parametrize(
    ("row", "status", "code"),
    [
        ({"body": b""}, 422, "empty"),
        ({"body": torn(ASTRONAUT.read_bytes())}, 422, "truncated"),
        ({"body": b"\x89PNG\r\n\x1a\n"}, 422, "unreadable"),
        ({"body": b"hello"}, 415, "unsupported"),
        ({"body": zoo()["bomb.png"].data}, 413, "too_large"),
        ({"body": "hello, decoded by TorchServe"}, 415, "unsupported"),
        ({"body": {"parsed": "JSON"}}, 415, "unsupported"),
        ({"body": [1]}, 415, "unsupported"),
        ({"picture": b"a form's field of another name"}, 415, "unsupported"),
        ({}, 415, "unsupported"),
    ],
)
def test_a_refused_picture_has_its_own_status(client: Client, row: dict[str, Any], status: int, code: str) -> None:
    [(found, answer)] = client.ask(row)
    assert (found, list(answer), answer["error"]["code"]) == (status, ["error"], code)
    assert answer["error"]["message"].endswith(".")


def test_a_picture_without_a_face_has_no_faces(client: Client) -> None:
    [(status, answer)] = client.ask({"body": encoded(Image.new("RGB", (90, 60), "green"))})
    assert (status, answer["faces"], answer["width"], answer["height"]) == (200, [], 90, 60)


def test_pictures_are_answered_upright(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    [(_, answer)] = client.ask({"body": encoded(Image.new("RGB", (90, 60)), "JPEG", exif=exif)})
    assert (answer["width"], answer["height"]) == (60, 90)


def test_a_forms_field_is_read(client: Client, faces: dict[str, bytes]) -> None:
    [(status, answer), (_, expected)] = client.ask({"data": faces["whole.png"]}, {"body": faces["whole.png"]})
    assert status == 200
    assert answer == expected


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({}, {"Faces": "crop"}),
        ({}, {"faces": "crop"}),
        ({"faces": bytearray(b"crop")}, {}),
        ({"faces": "crop"}, {"faces": {"content-type": "text/plain"}}),
        ({"faces": b"crop"}, {"faces": "detect"}),
    ],
)
def test_crop_takes_the_whole_picture_as_the_face(
    client: Client, astronaut: Image.Image, row: dict[str, Any], headers: dict[str, Any]
) -> None:
    picture = encoded(astronaut.resize((300, 200)))
    [(status, answer)] = client.ask({"body": picture, **row}, headers=headers)
    assert status == 200
    [face] = answer["faces"]
    assert (face["box"], face["score"]) == ([0, 0, 300, 200], None)


@pytest.mark.parametrize("mode", [b"Crop", b"", "both", b"\xff", 3])
def test_an_unknown_mode_is_a_bad_request_of_its_own(client: Client, faces: dict[str, bytes], mode: Any) -> None:
    picture = faces["whole.png"]
    [(status, answer), (other, _)] = client.ask({"body": picture, "faces": mode}, {"body": picture})
    assert (status, other) == (400, 200)
    assert answer["error"]["code"] == "usage"
    assert "detect or crop" in answer["error"]["message"]


def test_more_faces_than_one_call_takes_keep_their_order(client: Client, astronaut: Image.Image) -> None:
    size = CHIPS_AT_ONCE + 6
    tiles = [astronaut.crop((5 * i, 3 * i, 5 * i + 90, 3 * i + 90)) for i in range(size)]
    rows = [{"body": encoded(tile), "faces": b"crop"} for tile in tiles]
    together = [ages(answer)[0] for _, answer in client.ask(*rows)]
    alone = [ages(client.ask(row)[0][1])[0] for row in rows]
    assert together == pytest.approx(alone, abs=0.01)
    assert np.ptp(alone) > 5, "the pictures' ages hardly differ"


def test_each_request_of_a_batch_has_the_interval_of_its_mode(
    client: Client, faces: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = client.handler._model
    spec = replace(model.spec, calibration=Calibration(0.9, (Band(0, 100, 500, 0.0, "crop"),)))
    monkeypatch.setattr(client.handler, "_model", replace(model, spec=spec))
    [(_, crop), (_, detect)] = client.ask({"body": faces["whole.png"], "faces": "crop"}, {"body": faces["whole.png"]})
    [whole], [found] = crop["faces"], detect["faces"]
    assert whole["age_high"] - whole["age_low"] < 5
    assert (found["age_low"], found["age_high"]) == (0, 100), "no band is for detected faces"


def test_an_unexpected_failure_stays_with_its_picture(
    client: Client, faces: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = client.handler._detector

    def fail_on_the_large_one(rgb: Any) -> Any:
        if rgb.shape[1] == 600:
            raise RuntimeError("a bug")
        return detect(rgb)

    monkeypatch.setattr(client.handler, "_detector", fail_on_the_large_one)
    answers = client.ask(*({"body": faces[name]} for name in ("whole.png", "large.webp", "tilted.jpg")))
    assert [status for status, _ in answers] == [200, 500, 200]
    assert answers[1][1]["error"]["code"] == "failed"


def test_a_failing_network_leaves_the_other_answers_alone(
    client: Client, faces: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(chips: Any) -> Any:
        raise RuntimeError("a bug")

    fail.name = "broken"
    monkeypatch.setattr(client.handler, "_engine", fail)
    empty = encoded(Image.new("RGB", (60, 60)))
    answers = client.ask({"body": faces["whole.png"]}, {"body": b""}, {"body": empty})
    assert [status for status, _ in answers] == [500, 422, 200]
    assert answers[2][1]["faces"] == []


def test_ages_are_not_rounded(client: Client, faces: dict[str, bytes]) -> None:
    found = [ages(client.ask({"body": data})[0][1])[0] for data in faces.values()]
    assert any(not math.isclose(age, round(age, 3), abs_tol=1e-6) for age in found)
