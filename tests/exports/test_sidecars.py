"""ExifTool reads our sidecars back, and their boxes lie on the faces of stored pictures, however these are turned."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import ASTRONAUT, encoded
from PIL import Image

from agewatch import api
from agewatch.cli.main import main
from agewatch.errors import UsageError
from agewatch.estimator.model import AgeModel
from agewatch.exports import sidecars

FACE = (130, 20, 330, 240)
"""Of ASTRONAUT, with hair and helmet around the face that the detector finds in it."""
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""What a camera does to an upright picture that it marks with an orientation (EXIF 2.3, tag 0x0112)."""
ODD = "Ünd 'فستق' & <b>\\.jpg"


@pytest.fixture(scope="module")
def scored(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A portrait in all eight orientations as JPEG, some as PNG and TIFF, one with a hard name; and its table."""
    root = tmp_path_factory.mktemp("turned") / "town"
    (root / "deep").mkdir(parents=True)
    upright = Image.open(ASTRONAUT).convert("RGB").crop((60, 0, 400, 512))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(STORED[orientation]) if orientation in STORED else upright
        (root / "deep" / f"{orientation}.jpg").write_bytes(encoded(stored, "JPEG", exif=exif))
        if orientation in (6, 7):
            (root / "deep" / f"{orientation}.png").write_bytes(encoded(stored, "PNG", exif=exif))
            (root / "deep" / f"{orientation}.tif").write_bytes(encoded(stored, "TIFF", exif=exif))
    (root / ODD).write_bytes(encoded(upright, "JPEG"))
    (root / "none.png").write_bytes(encoded(Image.new("RGB", (300, 200), "grey")))
    table = root.parent / "table"
    api.score_archive(root, model=model_folder, predictions=table, workers=1)
    return root, table


def read_by_exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """What ExifTool reads of all sidecars in a folder, by their paths."""
    command = ["exiftool", "-json", "-struct", "-validate", "-warning", "-recurse", "-ext", "xmp", "-all", folder]
    answers = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {str(Path(answer["SourceFile"]).relative_to(folder)): answer for answer in answers}


def test_boxes_lie_on_the_face_in_all_eight_orientations(
    scored: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    root, table = scored
    model = AgeModel.load(model_folder).id
    written = sidecars.write(table, tmp_path / "out", model=model)
    assert (written.sidecars, written.faces, written.kept, written.left_out) == (13, 13, [], {})
    found = read_by_exiftool(tmp_path / "out")
    assert set(found) == {f"{path.relative_to(root)}.xmp" for path in root.rglob("*.*") if path.stem != "none"}
    upright = Image.open(ASTRONAUT).convert("RGB").crop((60, 0, 400, 512))
    marked = Image.new("L", upright.size)
    marked.paste(255, (FACE[0] - 60, FACE[1], FACE[2] - 60, FACE[3]))
    for name, answer in found.items():
        assert answer["Validate"] == "OK"
        orientation = int(Path(name).name[0]) if name.startswith("deep") else 1
        where = marked.transpose(STORED[orientation]) if orientation in STORED else marked
        applied, [region] = answer["RegionInfo"]["AppliedToDimensions"], answer["RegionInfo"]["RegionList"]
        assert (applied["W"], applied["H"], applied["Unit"]) == (*where.size, "pixel")
        area = region["Area"]
        left, right = ((area["X"] + side * area["W"] / 2) * applied["W"] for side in (-1, 1))
        top, bottom = ((area["Y"] + side * area["H"] / 2) * applied["H"] for side in (-1, 1))
        assert Image.eval(where, int).crop((int(left), int(top), int(right), int(bottom))).getextrema() == (255, 255)
        assert (bottom - top) * (right - left) > 0.2 * (FACE[2] - FACE[0]) * (FACE[3] - FACE[1])


def test_a_sidecar_names_nobody_and_says_that_ages_are_estimates(
    scored: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    _, table = scored
    sidecars.write(table, tmp_path / "out", model=AgeModel.load(model_folder).id)
    answer = read_by_exiftool(tmp_path / "out")[f"{ODD}.xmp"]
    [region] = answer["RegionInfo"]["RegionList"]
    assert set(region) == {"Area", "Type", "Description", "Extensions"}  # a Name would be a person's
    assert region["Type"] == "Face"
    ages = region["Extensions"]
    low, age, high = (ages[f"XMP-agewatch:EstimatedAge{which}"] for which in ("Low", "", "High"))
    assert low <= age <= high
    assert region["Description"] == f"about {age:.0f} years, estimated ({low:.0f} to {high:.0f})"
    assert "a model's estimates" in answer["EstimatesAre"]


def test_nothing_is_written_into_an_archive_untold_nor_over_the_sidecars_of_others(
    scored: tuple[Path, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root, table = scored
    model = AgeModel.load(model_folder).id
    with pytest.raises(UsageError, match="--into-archive"):
        sidecars.write(table, root / "new", model=model)
    assert not (root / "new").exists()
    told = ["--format", "xmp", "--archive", "town", "--model", model_folder, "--predictions", table, "--json"]
    monkeypatch.setattr(sys, "argv", ["agewatch", "export", *map(str, told), "--out", str(root), "--into-archive"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["sidecars"] == 13
    digikams = root / "deep" / "3.jpg.xmp"
    digikams.write_text(digikams.read_text().replace('xmptk="agewatch"', 'xmptk="XMP Core 4.4.0-Exiv2"'))
    before = digikams.read_bytes()
    lost = root / "deep" / "4.jpg"
    picture = lost.read_bytes()
    lost.write_bytes((root / "deep" / "5.jpg").read_bytes())
    try:
        again = sidecars.write(table, root, model=model, into_archive=True)
    finally:
        lost.write_bytes(picture)
        for sidecar in root.rglob("*.xmp"):
            sidecar.unlink()
    assert again.kept == ["deep/3.jpg"]
    assert again.left_out == {"deep/4.jpg": "The file holds another picture than was scored."}
    assert again.sidecars == 11
    assert before.count(b"Exiv2") == 1
