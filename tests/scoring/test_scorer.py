import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pictures import ASTRONAUT

from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Band, Calibration, Mode
from agewatch.scoring.predictions import Key
from agewatch.scoring.scorer import Job, Scorer
from agewatch.sources import door
from agewatch.sources.source import FileRef

SHARE = """
import sys
from dataclasses import dataclass
from agewatch.scoring import pool
from agewatch.scoring.content import SharedKeys

@dataclass(frozen=True)
class Asked(pool.Task):
    known: SharedKeys
    def open(self):
        return lambda items, starts: [item in self.known for item in items]
    def give_up(self, item, why):
        raise AssertionError(why)

if __name__ == "__main__":
    for keys in ([3, 1, 2**64 - 1], []):
        print(*pool.run(Asked(SharedKeys(keys)), [[1, 2], [3, 2**64 - 1]], 2), flush=True)
    input()
"""


def test_known_content_is_read_by_workers_and_leaves_nothing_when_its_process_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SHARE)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = set(Path("/dev/shm").iterdir())
    environment = {**os.environ, "TMPDIR": str(scratch)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdout is not None
        known, unknown = sorted(eval(process.stdout.readline().replace("] [", "], ["))), process.stdout.readline()
        assert known == [[True, False], [True, True]]
        assert unknown.split() == ["[False,", "False]"] * 2
        process.send_signal(signal.SIGKILL)
    assert list(scratch.iterdir()) == []
    assert {path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("pym-")} == set()


def test_a_row_has_the_interval_of_its_mode(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    model = AgeModel.load(model_folder)
    only_crops = Calibration(0.9, (Band(0, 100, 500, 0.0, "crop"),))
    AgeModel(replace(model.spec, calibration=only_crops), model.weights).save(tmp_path)

    def width(mode: Mode) -> float:
        job = Job(door.at(ASTRONAUT.parent), Key("space", "m", mode), "run", tmp_path, cache, "openvino", "f32")
        [row] = Scorer(job).score([FileRef(ASTRONAUT.name)]).rows
        return row["age_high"] - row["age_low"]

    assert width("crop") < 5
    assert width("detect") == 100, "no band is for detected faces"
