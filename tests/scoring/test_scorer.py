import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from pictures import ASTRONAUT

from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Band, Calibration, Mode
from agewatch.scoring.archive import FileRef
from agewatch.scoring.scorer import Job, Scorer

HOLD = """
from agewatch.scoring.scorer import known_content
with known_content([3, 1, 2]) as known:
    print(known, flush=True)
    input()
"""


def test_known_content_is_read_by_others_and_gone_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdout is not None
        known = Path(process.stdout.readline().strip())
        for _ in range(2):  # by a worker, and by the one in its place
            assert np.load(known, mmap_mode="r").tolist() == [1, 2, 3]
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_row_has_the_interval_of_its_mode(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    model = AgeModel.load(model_folder)
    only_crops = Calibration(0.9, (Band(0, 100, 500, 0.0, "crop"),))
    AgeModel(replace(model.spec, calibration=only_crops), model.weights).save(tmp_path)

    def width(mode: Mode) -> float:
        job = Job(ASTRONAUT.parent, "space", tmp_path, mode, "openvino", "f32", cache, "run")
        [row] = Scorer(job).score([FileRef(ASTRONAUT.name, None, None)]).rows
        return row["age_high"] - row["age_low"]

    assert width("crop") < 5
    assert width("detect") == 100, "no band is for detected faces"
