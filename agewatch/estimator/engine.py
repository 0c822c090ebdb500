"""The one place that runs a network: OpenVINO on a CPU, torch elsewhere."""

import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from agewatch.errors import ModelError
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Floats

EngineName = Literal["auto", "openvino", "torch"]
Precision = Literal["auto", "f32", "bf16"]

BF16_GATE_YEARS = 0.1
"""`--precision auto` uses bf16 only where the model's recorded MAE in bf16 is worse than f32 by at most this."""
CHIPS_A_CALL = 8
"""Chips that OpenVINO gets at once: what lies between two layers then stays in a core's cache (benchmarks/bench.py)."""

_COST_BATCH, _COST_ROUNDS = 32, 7


class Engine(Protocol):
    """A network that is ready to run. `name` is the engine column of the predictions table."""

    name: str

    def __call__(self, chips: RGB) -> Floats:
        """Map uint8 chips (n, size, size, 3) to distributions (n, bins)."""
        ...


def open_engine(model: AgeModel, *, cache: Path, engine: EngineName = "auto", precision: Precision = "auto") -> Engine:
    """Make a model ready to run on one thread of this machine; `auto` is torch where CUDA is, else OpenVINO.

    `cache` is the folder for converted networks. Raises ModelError where the request can't be met.
    """
    if engine == "torch" or (engine == "auto" and _has_cuda()):
        if precision == "bf16":
            raise ModelError("bf16 is offered by the OpenVINO engine only.")
        return TorchEngine(model)
    return OpenVinoEngine(model, cache=cache, precision=resolve_precision(model, precision))


def resolve_precision(model: AgeModel, precision: Precision) -> Literal["f32", "bf16"]:
    """Decide f32 or bf16 for OpenVINO on this CPU. Raises ModelError where bf16 is asked for and absent."""
    if precision == "bf16" and not has_bf16():
        raise ModelError("This CPU has no bf16; use --precision f32 or auto.")
    if precision != "auto":
        return precision
    recorded = model.spec.metrics.get("bf16", {}).get("mae_change_years")
    return "bf16" if recorded is not None and recorded <= BF16_GATE_YEARS and has_bf16() else "f32"


def has_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 in hardware."""
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cpu_ms_a_face(models: Sequence[AgeModel], *, cache: Path) -> list[float]:
    """CPU time of each model's network a face, ms on one core of this machine: medians of interleaved rounds.

    OpenVINO, bf16 where the CPU has it, in batches as batch scoring uses.
    """
    precision: Precision = "bf16" if has_bf16() else "f32"
    engines = [open_engine(model, cache=cache, engine="openvino", precision=precision) for model in models]
    batches = [np.zeros((_COST_BATCH, *model.spec.cut.shape), np.uint8) for model in models]
    rounds = [[_cpu_seconds(*pair) for pair in zip(engines, batches, strict=True)] for _ in range(_COST_ROUNDS + 1)]
    return [1000 / _COST_BATCH * statistics.median(each) for each in zip(*rounds[1:], strict=True)]


def _cpu_seconds(engine: Engine, batch: RGB) -> float:
    started = time.process_time()
    engine(batch)
    return time.process_time() - started


class TorchEngine:
    """Torch on CUDA where present, else on the CPU, in f32."""

    def __init__(self, model: AgeModel) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = model.network().to(self._device)
        torch.set_num_threads(1)
        self.name = f"torch-{self._device.type}-f32"

    def __call__(self, chips: RGB) -> Floats:
        """Map uint8 chips (n, size, size, 3) to distributions (n, bins)."""
        with self._torch.inference_mode():
            output = self._network(self._torch.from_numpy(chips).to(self._device))
        return np.asarray(output.float().cpu().numpy(), dtype=np.float32)


class OpenVinoEngine:
    """OpenVINO on one CPU thread; the converted network is cached under its model's hash."""

    def __init__(self, model: AgeModel, *, cache: Path, precision: Literal["f32", "bf16"]) -> None:
        openvino = _openvino()
        core = openvino.Core()
        version = openvino.get_version().split("-")[0]
        folder = cache / f"{model.hash12}-openvino-{version}"
        if not (folder / "model.xml").exists():
            _convert(model, folder)
        self._compiled = core.compile_model(
            folder / "model.xml",
            "CPU",
            _one_thread(precision),
        )
        self.name = f"openvino-{precision}"

    def __call__(self, chips: RGB) -> Floats:
        """Map uint8 chips (n, size, size, 3) to distributions (n, bins)."""
        batches = (chips[start : start + CHIPS_A_CALL] for start in range(0, len(chips), CHIPS_A_CALL))
        return np.concatenate([np.array(self._compiled(batch)[0], dtype=np.float32) for batch in batches])


def open_detector_network(onnx: Path) -> Callable[[Floats], dict[str, Floats]]:
    """Make a face detector's ONNX file ready to run on one thread, for inputs of any size (1, 3, height, width)."""
    core = _openvino().Core()
    network = core.read_model(onnx)
    network.reshape([1, 3, -1, -1])
    compiled = core.compile_model(network, "CPU", _one_thread("f32"))
    names = [output.get_any_name() for output in network.outputs]
    return lambda chw: dict(zip(names, compiled(chw).values(), strict=True))


def _one_thread(precision: str) -> dict[str, Any]:
    """OpenVINO's settings for a worker of one thread.

    Without the last one each process pins its thread to the same core, and all workers together run no faster than one.
    """
    return {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,
    }


def _convert(model: AgeModel, folder: Path) -> None:
    """Convert and store the network, written aside and renamed, so that parallel first runs are harmless."""
    import torch

    openvino = _openvino()
    size = model.spec.image_size
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # openvino traces with torch.jit, which torch would retire
        network = openvino.convert_model(model.network(), example_input=example, input=[-1, size, size, 3])
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        openvino.save_model(network, aside / "model.xml", compress_to_fp16=False)
        aside.rename(folder)
    except OSError as error:
        if not (folder / "model.xml").exists():  # otherwise another process was faster
            raise ModelError(f"The converted network can't be stored in {folder}: {error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _openvino() -> Any:
    # Importing openvino reports to its maker unless this package is absent; None makes it absent.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


def _has_cuda() -> bool:
    # Asking torch costs seconds at every start, so it is asked only where a driver shows a device.
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return False
    import torch

    return torch.cuda.is_available()
