"""What an archive's size costs: a second run over 100,000 files, and memory at 40,000 pictures beside 4,000.

The archives are small pictures of noise. Of the 100,000 many are equal, as the second run does not look at them; those
of the memory are all different, and a tiny network hides nothing. Opened files are counted by a Python audit hook in
all processes of a run.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from bench import AGEWATCH
from results import table, write_section

from agewatch.estimator.model import AgeModel
from agewatch.estimator.network import AgeNetwork, to_bytes
from agewatch.estimator.spec import Member, Preprocessing, Spec

SECOND_RUN = 100_000
FEW, MANY = 4_000, 40_000
DISTINCT = 2_000
COUNT_OPENS = """
import atexit, os, sys

archive = os.fsencode(os.environ["COUNTED_ARCHIVE"])
opened = 0

def count(event, arguments):
    global opened
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsencode(arguments[0]).startswith(archive):
        opened += 1

def tell():
    with open(os.environ["COUNTED_OUT"], "a") as out:
        out.write(f"{opened}\\n")

sys.addaudithook(count)
atexit.register(tell)
"""


@dataclass
class Run:
    """What a run said, its CPU seconds, the largest process's peak of memory in MB, and files opened below it."""

    said: dict[str, int]
    cpu: float
    peak: float
    opened: int


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["AGEWATCH_HOME"] = folder
        os.environ["OMP_NUM_THREADS"] = "1"
        model = _tiny_model(home / "model")
        _run(_archive(home / "converts", 16, distinct=16), home, model)
        large = _archive(home / "large", SECOND_RUN, distinct=DISTINCT)
        runs = {f"first, {SECOND_RUN:,} files": _run(large, home, model), "second": _run(large, home, model)}
        peaks = {n: _run(_archive(home / f"of-{n}", n, distinct=n), home, model).peak for n in (FEW, MANY)}
    rows = [
        [name, str(run.said["found"]), str(run.said["scored"]), str(run.said["skipped"]), str(run.opened),
         f"{run.cpu:.2f}", f"{run.peak:.0f}"]
        for name, run in runs.items()
    ]  # fmt: skip
    header = ["run", "found", "scored", "skipped", "opened", "CPU s", "peak MB of its largest process"]
    write_section(
        "Size of the archive",
        f"Written by `make bench`: pictures of 32x32 pixels, a tiny network.\n\n{table(header, rows)}\n\n"
        f"Peak memory of the largest process of a first run over {FEW:,} pictures {peaks[FEW]:.0f} MB, over {MANY:,}"
        f" {peaks[MANY]:.0f} MB: {peaks[MANY] / peaks[FEW]:.2f} times.",
    )


def _tiny_model(folder: Path) -> Path:
    """An untrained network, so that its memory hides nothing and its time delays nothing."""
    grey = (0.5, 0.5, 0.5)
    spec = Spec("agewatch", "0", members=(Member("test_efficientnet", 64),), preprocessing=Preprocessing(grey, grey))
    folder.mkdir()
    AgeModel(spec, to_bytes(AgeNetwork(spec).state_dict())).save(folder)
    return folder


def _archive(root: Path, count: int, *, distinct: int) -> Path:
    """Pictures of noise in folders of a thousand; so many contents."""
    draw = np.random.default_rng(0)
    contents = [simplejpeg.encode_jpeg(pixels) for pixels in draw.integers(0, 256, (distinct, 32, 32, 3), np.uint8)]
    for number in range(count):
        file = root / f"{number // 1000:03}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < distinct:
            file.write_bytes(contents[number])
        else:  # a link is a file of its own to a listing, and quickly made
            file.hardlink_to(root / f"{number % distinct // 1000:03}" / f"{number % distinct:06}.jpg")
    return root


def _run(archive: Path, home: Path, model: Path) -> Run:
    site, counts = home / "site", home / "counts"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(COUNT_OPENS)
    counts.write_text("")
    counted = {"PYTHONPATH": str(site), "COUNTED_ARCHIVE": f"{archive}/", "COUNTED_OUT": str(counts)}
    command = [AGEWATCH, "score", archive, "--faces", "crop", "--model", model, "--json"]
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([json.loads(done.stdout), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, command)],
        env=os.environ | counted, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, cpu, peak = json.loads(done.stdout)
    return Run(said, cpu, peak, sum(map(int, counts.read_text().split())))


if __name__ == "__main__":
    main()
