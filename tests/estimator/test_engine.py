import dataclasses
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from agewatch.errors import ModelError
from agewatch.estimator import engine
from agewatch.estimator.engine import BF16_GATE_YEARS, open_engine, resolve_precision
from agewatch.estimator.model import AgeModel


@pytest.fixture
def model(model_folder: Path) -> AgeModel:
    return AgeModel.load(model_folder)


def chips(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_openvino_and_torch_give_the_same_ages(model: AgeModel, cache: Path) -> None:
    some = chips(5)
    ours = open_engine(model, cache=cache, engine="openvino", precision="f32")
    torch = open_engine(model, cache=cache, engine="torch")
    assert ours.name == "openvino-f32"
    assert torch.name.startswith("torch-")
    first, second = model.estimate(ours(some), ["crop"] * 5), model.estimate(torch(some), ["crop"] * 5)
    assert np.ptp(first.age) > 0.1
    assert first.age == pytest.approx(second.age, abs=0.01)
    assert ours(some).sum(axis=1) == pytest.approx(np.ones(5), abs=1e-4)


def test_a_face_has_its_age_whatever_stands_beside_it_in_the_batch(model: AgeModel, cache: Path) -> None:
    run = open_engine(model, cache=cache, precision="f32")
    together = model.ages(run(chips(7)))
    alone = [model.ages(run(chip[None]))[0] for chip in chips(7)]
    assert together == pytest.approx(alone, abs=0.01)


def test_the_converted_network_is_kept(model: AgeModel, tmp_path: Path) -> None:
    open_engine(model, cache=tmp_path, precision="f32")
    [kept] = tmp_path.iterdir()
    assert kept.name.startswith(model.hash12)
    stamp = (kept / "model.xml").stat().st_mtime_ns
    open_engine(model, cache=tmp_path, precision="f32")
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert (kept / "model.xml").stat().st_mtime_ns == stamp


def test_no_thread_is_bound_to_a_core_which_all_workers_would_share(model: AgeModel, cache: Path) -> None:
    run = open_engine(model, cache=cache, engine="openvino", precision="f32")
    running = Thread(target=lambda: [run(chips(64)) for _ in range(20)])
    running.start()
    cores: set[int] = set()
    while running.is_alive():
        with suppress(OSError):  # a thread that ended meanwhile
            cores |= {len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}
    assert cores == {len(os.sched_getaffinity(0))}


@pytest.mark.parametrize("cpu", [True, False])
def test_auto_uses_bf16_only_where_cpu_and_model_allow_it(
    model: AgeModel, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_bf16", lambda: cpu)

    def resolved(**bf16: float) -> str:
        spec = dataclasses.replace(model.spec, metrics={"bf16": bf16})
        return resolve_precision(dataclasses.replace(model, spec=spec), "auto")

    assert resolved() == "f32"
    assert resolved(mae_change_years=BF16_GATE_YEARS * 2) == "f32"
    assert resolved(mae_change_years=0.01) == ("bf16" if cpu else "f32")
    assert resolve_precision(model, "f32") == "f32"
    with nullcontext() if cpu else pytest.raises(ModelError, match="no bf16"):
        assert resolve_precision(model, "bf16") == "bf16"


def test_bf16_with_torch_is_refused(model: AgeModel, cache: Path) -> None:
    with pytest.raises(ModelError, match="bf16"):
        open_engine(model, cache=cache, engine="torch", precision="bf16")


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = (
        "from agewatch.estimator import engine; engine.has_bf16(); import sys;"
        " assert not sys.modules['openvino_telemetry']"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
