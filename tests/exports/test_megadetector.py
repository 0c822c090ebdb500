"""MegaDetector's own validator finds nothing wrong with our file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rows import row, writer

from agewatch.errors import UsageError
from agewatch.exports.export import export

PEERS = Path(sys.prefix) / "peers"
"""`make peers` puts it there."""
VALIDATE = """
import json, sys
from megadetector.postprocessing.validate_batch_results import ValidateBatchResultsOptions, validate_batch_results
options = ValidateBatchResultsOptions()
options.check_image_existence, options.relative_path_base = True, sys.argv[2]
print(json.dumps(validate_batch_results(sys.argv[1], options)["validation_results"]))
"""


def test_the_peers_validator_takes_it_and_every_file_stands_once(tmp_path: Path) -> None:
    box = {"box_x": -10.0, "box_y": 20.0, "box_w": 60.0, "box_h": 100.0, "width": 200, "height": 400}
    years = {"age_low": 20.0, "age_high": 45.0, "face_score": 0.9}
    names = ["two faces.jpg", "none.jpg", "torn.jpg", "كلمة \\ ü.jpg", "crop.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    writer(tmp_path, tmp_path).write(
        [
            row("two faces.jpg", face=1, age=101.5, **box, **years),
            row("two faces.jpg", face=0, age=30.1, **box, **years),
            row("none.jpg", face=None, age=None, width=5, height=5),
            row("torn.jpg", face=None, age=None, status="truncated", error="Data are missing."),
            row("كلمة \\\\ ü.jpg", age=9.96, **box, **years),
            row("crop.jpg", age=40.0, **box, **years | {"face_score": None}),
        ]
    )
    out = tmp_path / "out.json"
    assert export(tmp_path / "table", out, format="megadetector", model="m-1@0") == 6
    validated = subprocess.run(
        [sys.executable, "-c", VALIDATE, out, tmp_path], env={"PYTHONPATH": str(PEERS)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert validated.returncode == 0, validated.stderr
    assert {"errors": [], "warnings": []}.items() <= json.loads(validated.stdout).items()
    content = json.loads(out.read_text())
    images = {image["file"]: image for image in content["images"]}
    assert sorted(images) == sorted(names)
    first, second = images["two faces.jpg"]["detections"]
    assert (first["age"], second["age"]) == (30.1, 101.5)
    assert first["bbox"] == [0.0, 0.05, 0.25, 0.25]  # of the box, what lies in the picture
    assert content["detection_categories"][first["category"]] == "face, estimated 30 to 39 years"
    assert content["detection_categories"][second["category"]] == "face, estimated 100 years or more"
    assert images["crop.jpg"]["detections"][0]["conf"] == 1.0
    assert images["none.jpg"]["detections"] == []
    assert images["torn.jpg"] == {"file": "torn.jpg", "failure": "Data are missing.", "detections": None}


def test_paths_of_two_archives_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        writer(tmp_path, tmp_path / name, archive=name).write([row("x.jpg", archive=name, face=None, age=None)])
    with pytest.raises(UsageError, match="a, b: name the archive"):
        export(tmp_path / "table", tmp_path / "out.json", format="megadetector", model="m-1@0")
