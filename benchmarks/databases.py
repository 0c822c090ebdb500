"""200 scheduled runs on SQLite and 200 on PostgreSQL: is one lost or doubled, and what grows?

`benchmarks/databases.py NIGHTS SECONDS` runs `agewatch up` for three archives, without faults, on each in turn. The
PostgreSQL is Debian's (`apt install postgresql`), in a folder of its own. It exits with 1 where a run was lost.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from nights import ARCHIVES, Desk, judge, live, prefect_runs, prepare, wait
from results import table, write_section

from agewatch.processes import LOOPBACK, free_ports

PARTS = {"up": "agewatch up", "server": "server start", "worker": "worker start"}


def main(nights: int = 67, seconds: int = 20) -> int:
    """Run it on both, and return how many untruths and lost or doubled runs there were."""
    rows, wrong = [], list[str]()
    for name in ("SQLite", "PostgreSQL"):
        row, found = _measured(name, nights, seconds)
        rows.append(row)
        wrong += [f"{name}: {each}" for each in found]
    head = (
        f"Written by `benchmarks/databases.py {nights} {seconds}`: {len(ARCHIVES)} archives, {nights} nights {seconds}"
        " s apart; memory is the proportional set size, at the first night and after the last."
    )
    header = ["database", "runs", "lost, doubled", "MB at first", "at last", "per 100 runs"]
    header += [f"{part}, MB" for part in PARTS]
    write_section("Databases", f"{head}\n\n{table(header, rows)}\n\nUntruths: {'; '.join(wrong) or 'none'}.\n")
    return len(wrong)


def _measured(name: str, nights: int, seconds: int) -> tuple[list[str], list[str]]:
    """A row of the table, and what was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="agewatch-databases-"))
    desk = Desk(folder, seconds, free_ports(1)[0])
    desk.home.mkdir()
    try:
        with _postgres() if name == "PostgreSQL" else _sqlite(desk) as (env, size):
            desk.env = env
            anchor = prepare(desk)
            desk.start()
            wait(desk, anchor)
            before, memory = size(), _memory(desk)
            live(desk, [], anchor, nights)
            after, later = size(), _memory(desk)
            wrong, _ = judge(desk, anchor, nights)
            runs = _ended(desk, anchor, nights)
    finally:
        desk.kill("everything")
        shutil.rmtree(folder, ignore_errors=True)
    lost = nights * len(ARCHIVES) - len(runs)
    doubled = sum(n - 1 for n in runs.values())
    if lost or doubled:
        wrong.append(f"{lost} runs lost, {doubled} doubled")
    each = [f"{memory[part]:.0f} to {later[part]:.0f}" for part in PARTS]
    grown = f"{100 * (after - before) / max(1, len(runs)):.1f}"
    return [name, str(len(runs)), f"{lost}, {doubled}", f"{before:.1f}", f"{after:.1f}", grown, *each], wrong


def _ended(desk: Desk, anchor: datetime, nights: int) -> Counter[tuple[str, datetime]]:
    """How often each night ran, by deployment and when it was due; the first one, at the start, is left out."""
    ended = prefect_runs(desk.port, "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    runs = [(str(run["deployment_id"]), datetime.fromisoformat(run["expected_start_time"])) for run in ended]
    until = anchor + timedelta(seconds=nights * desk.seconds)
    return Counter(run for run in runs if anchor <= run[1] < until)


def _memory(desk: Desk) -> dict[str, float]:
    """The proportional set size of each part, MB."""
    found = dict.fromkeys(PARTS, 0.0)
    for process in desk.processes("everything"):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            for part, words in PARTS.items():
                found[part] += process.memory_full_info().pss / 1e6 if words in line else 0
    return found


@contextmanager
def _sqlite(desk: Desk) -> Iterator[tuple[dict[str, str], Callable[[], float]]]:
    """Prefect's own, in the home; its size in MB, with what is not yet merged into it."""
    yield {}, lambda: sum(file.stat().st_size for file in (desk.home / "prefect").glob("prefect.db*")) / 1e6


@contextmanager
def _postgres() -> Iterator[tuple[dict[str, str], Callable[[], float]]]:
    """A server on loopback, run by the user postgres, as it refuses root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder, port = Path(tempfile.mkdtemp(prefix="agewatch-postgres-", dir="/tmp")), free_ports(1)[0]
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> str:
        command = [*as_user, str(programs / program), *arguments]
        return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    def size() -> float:
        asked = ["-h", LOOPBACK, "-p", str(port), "-U", "postgres", "-Atc", "SELECT pg_database_size('postgres')"]
        return int(run("psql", *asked)) / 1e6

    run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust")
    options = f"-p {port} -h {LOOPBACK} -k {folder}"
    # Its log is a file: what it inherits as its output would be waited for.
    run("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", options, "-w", "start")
    try:
        url = f"postgresql+asyncpg://postgres@{LOOPBACK}:{port}/postgres"
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}, size
    finally:
        run("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
