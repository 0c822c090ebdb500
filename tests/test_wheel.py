"""The built wheel works away from the checkout, with the starter model that it carries."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_four_packages_and_the_starter(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "agewatch", "flows", "handler", "monitoring",
    }  # fmt: skip
    assert len([name for name in names if name.startswith("agewatch/starter/") and name.endswith(".mar")]) == 1


def test_the_installed_wheel_scores_exports_and_reports_drift(wheel: Path, archive: Path, tmp_path: Path) -> None:
    """The environment sees the libraries of this one, but not the checkout's editable install."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("AGEWATCH", "PYTHON"))}

    def run(*command: object) -> tuple[int, str]:
        done = subprocess.run(
            [environment / "bin" / command[0], *map(str, command[1:])],
            cwd=tmp_path, env=kept, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    _, where = run("python", "-c", "import agewatch, monitoring; print(agewatch.__file__, monitoring.__file__)")
    assert all(place.startswith(own) for place in where.split())
    code, out = run("agewatch", "score", archive, "--json", "--max-refused", 1)
    assert code == 0
    summary = json.loads(out)
    assert (summary["found"], summary["faces"]) == (6, 2)
    code, out = run("agewatch", "drift", "--json")
    verdict = json.loads(out)
    assert code == verdict["exit_code"] == 5
    assert verdict["headline"].startswith("Too little data: 2 of the 2,000 faces")
    assert "2 of the 2,000 faces that it takes have arrived" in Path(verdict["report"]).read_text()
    assert run("agewatch", "export", "--out", "rows.csv")[0] == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + summary["found"]
