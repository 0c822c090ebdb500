"""A trained model and the handler -> one `.mar` that both TorchServe and batch scoring open."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from agewatch.errors import ModelError, UsageError
from agewatch.estimator.model import AgeModel, read_reference, read_splits
from agewatch.release import records, smoke

_CODE = Path(__file__).parents[1]
_HANDLER, _CONFIG = "age_handler.py", "model-config.yaml"


def package(run_folder: Path, *, version: str, store: Path) -> Path:
    """Make `STORE/agewatch-VERSION.mar` of what `train` left in a folder: the model and its tables.

    Weights and calibration stay as they are, so the hash does too; only the version is new. The file appears
    whole or not at all. Raises UsageError where the version is malformed or exists already, ModelError where
    the folder holds no whole model or the archiver fails.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", version):
        raise UsageError(f"A version is made of letters, digits, '.', '_' and '-', not {version!r}.")
    target = store / f"agewatch-{version}.mar"
    if target.exists():
        raise UsageError(f"{target} exists already; choose another version.")
    trained = AgeModel.load(run_folder)
    model = dataclasses.replace(trained, spec=dataclasses.replace(trained.spec, version=version))
    tables = {"reference.parquet": _renamed(read_reference(run_folder), model.id)}
    if splits := read_splits(run_folder):
        tables["splits.parquet"] = splits
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".packaging-") as folder:
        content = Path(folder, "content")
        for name, source in code().items():
            (content / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, content / name)
        smoke.write(content / "smoke", model)
        model.save(content)
        for name, table in tables.items():
            (content / name).write_bytes(table)
        made = _archive(Path(folder), version)
        if AgeModel.load(made).id != model.id:
            raise ModelError(f"The archive made from {run_folder} holds another model than the folder.")
        records.keep(store, dataclasses.replace(records.Code.of(made, "packaged"), file=target.name))
        made.replace(target)
    return target


def code() -> dict[str, Path]:
    """The files whose code a model file carries, by their names in it. Raises ModelError where they are missing."""
    found = find_spec("handler")  # its files are wanted, not its code
    if found is None or not found.submodule_search_locations:
        raise ModelError("The package 'handler' is not installed: install agewatch.")
    handler = Path(found.submodule_search_locations[0])
    carried = [_CODE / name for name in ("__init__.py", "errors.py")] + sorted((_CODE / "estimator").rglob("*.py"))
    ours = {f"agewatch/{file.relative_to(_CODE).as_posix()}": file for file in carried}
    return ours | {file: handler / file for file in (_HANDLER, _CONFIG)}


def _renamed(reference: bytes, model_id: str) -> bytes:
    """The reference rows under the id that the model has once it is packaged."""
    rows = pq.ParquetFile(pa.BufferReader(reference)).read(use_threads=False)
    if (place := rows.schema.get_field_index("model")) >= 0:
        rows = rows.set_column(place, "model", pa.array([model_id] * len(rows), pa.string()))
    file = io.BytesIO()
    pq.write_table(rows, file)
    return file.getvalue()


def _archive(stage: Path, version: str) -> Path:
    """Let torch-model-archiver pack what lies in the folder `content` of `stage`."""
    (stage / "tmp").mkdir()  # the archiver empties TMPDIR/agewatch: it gets a TMPDIR of its own
    command = [
        sys.executable, "-m", "model_archiver.model_packaging",
        "--model-name", "agewatch", "--version", version, "--export-path", ".",
        "--handler", f"content/{_HANDLER}", "--config-file", f"content/{_CONFIG}",
        "--extra-files", "content",  # the folder itself is flattened, agewatch/ in it stays a folder
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=stage, env={**os.environ, "TMPDIR": str(stage / "tmp")}, capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"torch-model-archiver failed: {reason}")
    return stage / "agewatch.mar"
