"""What scoring costs a picture in CPU time, beside its parts and beside a pipeline that a competent user would write.

Everything is measured in one run, interleaved: `make bench`, with AGEWATCH_DATA naming a folder of real pictures.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import numpy.typing as npt
from results import table, write_section

import agewatch.estimator.engine
from agewatch.estimator.engine import CHIPS_A_CALL, Precision, has_bf16, open_engine
from agewatch.estimator.faces import DECODED_SIDE, YuNet
from agewatch.estimator.images import decode
from agewatch.estimator.model import AgeModel
from agewatch.release.store import resolve
from agewatch.settings import Settings
from agewatch.sources import door

ARCHIVES = {"archive_faces": "crop", "archive_portraits": "detect"}
ROUNDS = 3
FEW, MANY = 256, 768
"""The cost of a run over FEW pictures is taken off that of MANY: what is left is free of start-up."""
CALLS = (4, CHIPS_A_CALL, 16, 32, 64)
"""Chips a call of the engine that are compared."""
REFERENCE = Path(__file__).parent / "reference.py"
AGEWATCH = Path(sys.executable).with_name("agewatch")
CORES = len(os.sched_getaffinity(0))
Seconds = npt.NDArray[np.float64]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16") if has_bf16() else ("f32",)


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["AGEWATCH_HOME"] = folder
        os.environ["OMP_NUM_THREADS"] = "1"
        text = "\n".join([_machine(), *(_compare(name, mode, home) for name, mode in ARCHIVES.items())])
    write_section("What scoring costs", text)


def _compare(name: str, mode: str, home: Path) -> str:
    root = Path(os.environ["AGEWATCH_DATA"]) / name if "AGEWATCH_DATA" in os.environ else _drawn(home / name)
    found = door.find(door.at(root)).files[:MANY]
    few, many = (_copied(root, [file.path for file in found[:n]], home / f"{name}-{n}") for n in (FEW, len(found)))
    runs = {f"agewatch, {precision}": _ours(mode, precision, home) for precision in PRECISIONS}
    for run in runs.values():
        run(few)  # converts the network, once
    runs["reference pipeline, f32"] = lambda folder: _seconds([sys.executable, REFERENCE, folder, str(resolve_model())])
    parts = [
        *(_forward(precision, n) for precision in PRECISIONS for n in CALLS),
        "decode only",
        *(["detect only"] if mode == "detect" else []),
    ]
    costs: dict[str, list[float]] = {what: [] for what in (*runs, *parts)}
    busy: dict[str, list[float]] = {what: [] for what in runs}
    spawn = get_context("spawn")
    opened = (spawn.Barrier(CORES), [door.at(root).read(file)[0] for file in found[:FEW]], mode, home)
    # As many processes at once as a run has workers: alone, each would have the shared cache for itself.
    with ProcessPoolExecutor(CORES, spawn, _open_parts, opened) as processes:
        for _ in range(ROUNDS):
            for what, run in runs.items():
                cpu, wall = run(many) - run(few)
                costs[what].append(1000 * cpu / (len(found) - FEW))
                busy[what].append(cpu / wall / CORES)
            for part in parts:
                costs[part].append(statistics.mean(processes.map(_part, [part] * CORES)))
    return _table(f"{name}, --faces {mode}, {len(found)} pictures", costs, busy)


def _ours(mode: str, precision: str, home: Path) -> Callable[[Path], Seconds]:
    def run(folder: Path) -> Seconds:
        options = ["--faces", mode, "--precision", precision, "--predictions", tempfile.mkdtemp(dir=home), "--json"]
        return _seconds([AGEWATCH, "score", folder, *options])

    return run


def _open_parts(together: Barrier, pictures: list[bytes], mode: str, home: Path) -> None:
    """Make this process ready to measure the parts, each as milliseconds of CPU a picture on one thread."""
    model = AgeModel.load(resolve_model())
    detector = YuNet()
    decoded = [decode(data, min_side=DECODED_SIDE).rgb for data in pictures]
    size = model.spec.image_size
    chips = np.random.default_rng(0).integers(0, 256, (max(CALLS), size, size, 3), np.uint8)

    def per_item(run: Callable[[], object], items: int, chips_a_call: int = CHIPS_A_CALL) -> float:
        agewatch.estimator.engine.CHIPS_A_CALL = chips_a_call
        together.wait()
        started = time.process_time()
        run()
        return 1000 * (time.process_time() - started) / items

    for precision in PRECISIONS:
        engine = open_engine(model, cache=home / "cache", engine="openvino", precision=precision)
        engine(chips)
        for n in CALLS:
            _parts[_forward(precision, n)] = lambda engine=engine, n=n: per_item(  # type: ignore[misc]
                lambda: [engine(chips) for _ in range(4)], 4 * len(chips), n
            )
    _parts["decode only"] = lambda: per_item(
        lambda: [decode(data, min_side=DECODED_SIDE) for data in pictures], len(pictures)
    )
    if mode == "detect":
        _parts["detect only"] = lambda: per_item(lambda: [detector(rgb) for rgb in decoded], len(decoded))


_parts: dict[str, Callable[[], float]] = {}  # of a measuring process


def _part(name: str) -> float:
    return _parts[name]()


def _forward(precision: str, chips_a_call: int = CHIPS_A_CALL) -> str:
    return f"forward only, {precision}, {chips_a_call} chips a call"


def resolve_model() -> Path:
    """The model that is measured: the store's current one."""
    return resolve(None, Settings().model_store)


def _seconds(command: list[object]) -> Seconds:
    """CPU seconds of a process and all its children, and wall seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return np.array([cpu, time.perf_counter() - started])


def _copied(root: Path, paths: list[str], folder: Path) -> Path:
    for number, path in enumerate(paths):
        target = folder / f"{number // 500}" / f"{number}{Path(path).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / path).read_bytes())
    return folder


def _drawn(folder: Path) -> Path:
    from PIL import Image

    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(MANY):
        blotches = draw.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(blotches).resize((200, 200)).save(folder / f"{number}.jpg")
    return folder


def _machine() -> str:
    described = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in described if line.startswith("model name")), "?")
    packages = ", ".join(f"{name} {version(name)}" for name in ("openvino", "torch", "timm", "pillow", "simplejpeg"))
    data = "real pictures" if "AGEWATCH_DATA" in os.environ else "drawn pictures"
    return (
        "Written by `make bench`; compare the ratios, not the milliseconds.\n\n"
        f"{cpu}, {CORES} cores; Python {platform.python_version()}, {packages}; {data};"
        f" medians of {ROUNDS} interleaved rounds, CPU time of all processes, start-up taken off;"
        f" parts in {CORES} processes at once, as in a run. Busy: CPU time over wall time and cores.\n"
    )


def _table(title: str, costs: dict[str, list[float]], busy: dict[str, list[float]]) -> str:
    middle = {what: statistics.median(each) for what, each in costs.items()}
    rows = [
        [what, f"{middle[what]:.2f}", f"{min(each):.2f} to {max(each):.2f}",
         f"{statistics.median(busy[what]):.0%}" if what in busy else ""]
        for what, each in costs.items()
    ]  # fmt: skip
    header = ["", "CPU ms a picture", "lowest to highest", f"of {CORES} cores busy"]
    lines = [f"\n## {title}\n", table(header, rows)]
    lines.append("")
    for precision in PRECISIONS:
        ours, forward = middle[f"agewatch, {precision}"], middle[_forward(precision)]
        parts = forward + middle["decode only"] + middle.get("detect only", 0.0)
        lines.append(
            f"- {precision}: {ours - forward:.2f} ms beyond the forward pass; {ours / parts:.2f} times the sum"
            f" of its parts; {middle['reference pipeline, f32'] / ours:.1f} times cheaper than the reference pipeline."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
