import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

HOLD = """
from agewatch.rows import known_content
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
