"""What a training run was made of: its configuration, data, versions and commit."""

import dataclasses
import json
import subprocess
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from agewatch.errors import UsageError
from agewatch.estimator.spec import Spec
from agewatch.files import write_json
from agewatch.training.recipe import TrainConfig


def claim(run: Path, config: TrainConfig, spec: Spec, start: Path | None) -> None:
    """Write the configuration into a run's folder. Raises UsageError where it holds another run's, or a torn one."""
    resolved = {
        "config": dataclasses.asdict(config),
        "start": str(start.resolve()) if start else None,
        "data_hash": spec.data_hash,
        "git_commit": spec.git_commit,
        "members": [dataclasses.asdict(member) for member in spec.members],
    }
    file = run / "config.json"
    if file.exists():
        # A run that was interrupted may go on with mended code; it keeps the commit that it began with.
        try:
            held = {**json.loads(file.read_bytes()), "git_commit": ""}
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{file} can't be read, so its run can't go on: choose a new folder.") from error
        if held != json.loads(json.dumps(resolved | {"git_commit": ""})):
            raise UsageError(f"The folder {run} holds another training run: choose a new one.")
        return
    write_json(file, resolved)


def data_hash(table: pd.DataFrame) -> str:
    """32 hex digits over source, path, label, content and split of every labelled picture."""
    columns = table[["source", "path", "age", "content_hash", "split"]].astype(str)
    return blake2b(columns.sort_values(["source", "path"]).to_csv(index=False).encode(), digest_size=16).hexdigest()


def library_versions() -> dict[str, str]:
    """The versions that decide about a model's weights and ages."""
    return {package: version(package) for package in ("torch", "timm", "openvino", "pillow", "numpy")}


def git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; empty where this is no checkout."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return answer.stdout.strip()
