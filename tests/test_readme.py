"""README, MODEL_CARD and Makefile say what is true."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from rows import row, writer

from agewatch.errors import REFUSAL_CODES
from agewatch.labelled.tables import as_markdown, from_records
from agewatch.release.store import read_pointer
from agewatch.scoring import predictions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CARD = (ROOT / "MODEL_CARD.md").read_text()
AGEWATCH = Path(sys.executable).with_name("agewatch")

SHOWN = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
COMMANDS = sorted(set(re.findall(r"^agewatch (\w+)", SHOWN, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists_with_its_options(command: str) -> None:
    shown = subprocess.run([AGEWATCH, command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    for line in re.findall(rf"^agewatch {command} (.*)$", SHOWN, re.MULTILINE):
        inner = re.match("[a-z]+", line)
        text = shown.stdout
        if inner and f"│ {inner[0]} " in text.partition("─ Commands")[2]:
            text += subprocess.run(
                [AGEWATCH, command, inner[0], "--help"], capture_output=True, text=True, check=True
            ).stdout
        for option in re.findall(r"--[\w-]+", line):
            assert option in text, f"agewatch {command} has no {option}"


def test_the_readme_uses_every_command_but_the_demo() -> None:
    shown = subprocess.run([AGEWATCH, "--help"], capture_output=True, text=True, check=True).stdout
    every = set(re.findall(r"│ (\w+) ", shown.split("Commands")[1]))
    assert every - set(COMMANDS) == {"demo"}  # which make runs


def test_every_column_and_refusal_is_explained() -> None:
    for name in [*predictions.SCHEMA.names, *REFUSAL_CODES]:
        assert f"`{name}`" in README, name


def test_other_programs_read_the_table_as_shown(tmp_path: Path) -> None:
    import deltalake
    import duckdb
    import polars

    writer(tmp_path, tmp_path).write([row("a.jpg"), row("b.jpg", face=None, status="no_face")])
    [shown] = [block for block in re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S) if "read_delta" in block]
    shown = shown.replace(".agewatch/predictions", str(tmp_path / "table"))
    found: dict[str, Any] = {"deltalake": deltalake, "duckdb": duckdb, "polars": polars}
    exec(shown + "read = duckdb_rows.fetchall()\n", found)
    assert len(found["pandas_rows"]) == len(found["polars_rows"]) == 2
    assert [path for path, _ in found["read"]] == ["a.jpg"]


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (?!PYTHON)(\w+)", README, re.MULTILINE)) <= targets


def test_the_model_card_is_of_the_current_model_and_shows_its_figures() -> None:
    pointer = read_pointer(ROOT / "model_store")
    assert pointer is not None
    assert pointer.model in CARD
    assert "The model learnt from none of these files." in CARD
    with zipfile.ZipFile(ROOT / "model_store" / pointer.file) as mar:
        metrics = json.loads(mar.read("model.json"))["metrics"]
    for records in metrics["held_out"].values():
        assert as_markdown(from_records(records)) in CARD
    assert (ROOT / "model_card.svg").read_text().startswith("<svg")


def test_both_say_what_estimates_must_not_be_used_for() -> None:
    for text in (README, CARD):
        assert "decide about a person" in text
        assert "consent" in text
