"""What `agewatch up` costs while it waits: CPU of its processes over ten minutes without a night, and their memory."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nights import Desk
from results import table, write_section

from agewatch.nights.ledger import Ledger
from agewatch.processes import free_ports

SETTLE_SECONDS = 60.0


def main(seconds: float = 600.0) -> None:
    """Start it for one archive, let the first night end, measure, and write the section."""
    with tempfile.TemporaryDirectory(prefix="agewatch-idle-") as name:
        desk = Desk(Path(name), seconds, free_ports(1)[0], query_seconds=10)
        (desk.folder / "archive").mkdir()
        desk.add("archive", 5)
        subprocess.run([sys.executable, "-m", "agewatch", "init", "archive"], cwd=desk.folder, check=True)
        desk.start()
        try:
            ledger = Ledger(desk.home)
            while not any(night.outcome for night in ledger.nights()):
                time.sleep(1)
            time.sleep(SETTLE_SECONDS)
            before = _used(desk)
            time.sleep(seconds)
            rows = [
                [part, f"{100 * (used - before[part][0]) / seconds:.2f} %", f"{megabytes:.0f}"]
                for part, (used, megabytes) in _used(desk).items()
            ]
        finally:
            desk.kill("everything")
    total = sum(float(row[1].split()[0]) for row in rows)
    write_section(
        "What waiting costs",
        f"Written by `benchmarks/idle.py`: `agewatch up` with one archive and no night for {seconds:.0f} seconds, in"
        f" per cent of one core; together {total:.2f} %.\n\n" + table(["part", "CPU", "memory, MB"], rows),
    )


def _used(desk: Desk) -> dict[str, tuple[float, float]]:
    """Seconds of CPU so far, and memory now, of each part."""
    parts = {"up": "agewatch up", "server": "server start", "worker": "worker start"}
    found = {}
    for process in desk.processes("everything"):
        line = " ".join(process.cmdline())
        for part, words in parts.items():
            if words in line:
                times = process.cpu_times()
                found[part] = (times.user + times.system, process.memory_info().rss / 1e6)
    return found


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
