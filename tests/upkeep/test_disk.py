"""Room for a night, on a small disk that fills up: a tmpfs, mounted where only the test's process sees it."""

import json
import subprocess
import sys
from pathlib import Path

SMALL = """
import json, subprocess, sys
from pathlib import Path
from agewatch.errors import AgewatchError
from agewatch.upkeep.disk import room_for_a_night
from agewatch.settings import Settings
disk = Path(sys.argv[1])

def told(files=0, home="home"):
    try:
        room_for_a_night(Settings(home=disk / home), files)
    except AgewatchError as error:
        return str(error)

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,nr_inodes=5000", "none", disk], check=True)
found = [told(), told(10_000), told(1_000_000)]
(disk / "large").write_bytes(bytes(97 * 2**20))
found.append(told())
(disk / "large").unlink()
(disk / "home").mkdir()
for number in range(4_500):
    (disk / "home" / str(number)).touch()
print(json.dumps([*found, told()]))
"""


def test_a_night_begins_only_where_its_rows_will_find_room(tmp_path: Path) -> None:
    small = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", SMALL, str(tmp_path)]
    done = subprocess.run(small, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"This test mounts a tmpfs in a user namespace, which must be allowed: {done.stderr}"
    usual, many, too_many, full, files = json.loads(done.stdout)
    assert usual is None, "a small disk is held to a share of it"
    assert many is None
    assert "A night needs about 3.2 GB" in too_many
    assert "A night needs about 5 MB" in full
    assert "more files" in files
    assert not [told for told in (too_many, full, files) if str(tmp_path) in told], "it is shown on Prefect's page"
