"""What a command says where its output has no reader, no room, or no letters for it: never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AGEWATCH = str(Path(sys.executable).with_name("agewatch"))
FULL = """
import json, subprocess, sys
folder, *commands = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder], check=True)
open(f"{folder}/out", "w").close()
with open(f"{folder}/fill", "wb", 0) as fill:
    fill.write(bytes(4096))
told = []
for command in map(json.loads, commands):
    with open(f"{folder}/out", "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    told.append([done.returncode, done.stderr])
print(json.dumps(told))
"""


@pytest.fixture
def score(home: Path, archive: Path, model_folder: Path) -> list[str]:
    """Arguments that score an archive, in a new home."""
    return ["score", str(archive), "--model", str(model_folder), "--max-refused", "1"]


def progress_apart(err: str) -> list[str]:
    return [line for line in err.splitlines() if " files/s" not in line]


def test_a_closed_pipe_is_quiet_and_has_the_code_of_a_shell(score: list[str], archive: Path) -> None:
    out = archive.with_name("rows.csv")
    subprocess.run([AGEWATCH, *score], capture_output=True, check=True)
    commands = [["--help"], score, ["export", "--model", score[3], "--out", str(out), "--json"], ["drift", "--json"]]
    for command in commands:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([AGEWATCH, *command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, progress_apart(done.stderr)) == (141, []), command
    assert out.stat().st_size > 0  # the work was done


def test_a_full_disk_below_stdout_is_one_sentence(score: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    commands = [["--help"], score, ["drift", "--json"], ["--wrong", "--json"]]
    texts = [json.dumps([AGEWATCH, *command]) for command in commands]
    small = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FULL, str(disk)]
    done = subprocess.run([*small, *texts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"This test mounts a tmpfs in a user namespace, which must be allowed: {done.stderr}"
    for command, (code, err) in zip(commands, json.loads(done.stdout), strict=True):
        assert code == 1, command
        [sentence] = progress_apart(err)
        assert sentence.startswith("agewatch: "), command
        assert "output" in sentence, command
        assert "No space left on device." in sentence, command


def test_a_closed_stdout_is_no_failure(home: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" models list >&-', AGEWATCH], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_of_ascii_shows_the_ages_and_finds_names(score: list[str], archive: Path, tmp_path: Path) -> None:
    renamed = archive.rename(tmp_path / "größe")
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}

    def run(*command: str) -> str:
        done = subprocess.run([AGEWATCH, *command], capture_output=True, check=False, env=ascii_only)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    table = ["--predictions", str(tmp_path / "täble")]
    shown = run("score", str(renamed), *score[2:], *table)
    assert shown.isascii()
    assert "Ages: median" in shown
    assert "####" in shown
    told = json.loads(run("score", str(renamed), *score[2:], *table, "--json"))
    assert (told["archive"], told["skipped"]) == ("größe", 6)
    out = str(tmp_path / "öut.csv")
    exported = json.loads(run("export", *score[2:4], *table, "--archive", "größe", "--out", out, "--json"))
    assert exported["rows"] == 6
    assert (tmp_path / "öut.csv").is_file()
