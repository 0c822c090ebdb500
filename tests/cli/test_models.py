"""`agewatch models` and a model file that is not there, through the real command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models import tiny_model

from agewatch.release.package import package
from agewatch.release.store import promote

AGEWATCH = Path(sys.executable).with_name("agewatch")


def agewatch(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([AGEWATCH, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Path:
    """A store with the models 1, which is promoted, and 2, and a damaged 3."""
    folder, model = tmp_path / "store", tiny_model(tmp_path / "model")
    for version in ("2", "1"):
        promoted = package(model, version=version, store=folder)
    promote(folder, promoted)
    (folder / "agewatch-3.mar").write_bytes(b"no zip")
    return folder


def test_a_damaged_model_is_named_and_the_others_are_listed_and_promoted(store: Path) -> None:
    code, out, err = agewatch("models", "list", "--json")
    listed = {Path(model["file"]).name: model["current"] for model in json.loads(out)["models"]}
    assert (code, listed) == (0, {"agewatch-1.mar": True, "agewatch-2.mar": False})
    assert err.startswith("agewatch: agewatch-3.mar is left out: ")
    assert len(err.splitlines()) == 1
    code, out, told = agewatch("models", "list")
    assert (code, told) == (0, err)
    assert "agewatch-2.mar" in out
    assert "agewatch-3.mar" not in out
    assert agewatch("models", "promote", store / "agewatch-2.mar", "--force")[0] == 0
    assert agewatch("models", "rollback")[0] == 0


@pytest.mark.parametrize(
    "command",
    [["score", "."], ["export", "--out", "x.csv"], ["evaluate", "."], ["models", "compare", "none.mar", "."]],
    ids=" ".join,
)
def test_a_model_file_that_is_not_there_is_wrong_usage(home: Path, command: list[str]) -> None:
    model = [] if "none.mar" in command else ["--model", "none.mar"]
    assert agewatch(*command, *model) == (2, "", "agewatch: There is no model at none.mar.\n")
