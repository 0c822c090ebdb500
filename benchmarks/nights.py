"""What becomes of nights when everything that can die does: 90 nights of three archives, with faults at random moments.

`benchmarks/nights.py NIGHTS SECONDS` runs a real `agewatch up` with nights that many seconds apart, kills its parts,
takes archives away and fills the disk (a small file system of its own, which needs root), and then asks whether the
ledger told the truth. It exits with 1 where it did not. The timeline is printed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image
from results import table, write_section

from agewatch.nights.ledger import TROUBLE, Ledger, Night
from agewatch.processes import free_ports
from agewatch.scoring import predictions

ARCHIVES = ("first", "second", "third")
FAULTS = {"flow": 30, "worker": 30, "server": 30, "everything": 10, "restart": 5, "full disk": 1, "slow night": 1}
AWAY_NIGHTS, FULL_NIGHTS, SLOW_NIGHTS = 1.6, 1.6, 1.5
DISK = "2g"  # each report takes 4 MB
_BREATH = 5.0  # what a service manager waits before it starts a service again


@dataclass
class Desk:
    """A folder with archives, a home of its own, and the `up` that runs there."""

    folder: Path
    seconds: float
    port: int
    told: list[tuple[float, str]] = field(default_factory=list)
    up: "subprocess.Popen[bytes] | None" = None
    made: int = 0
    query_seconds: int = 2
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Its AGEWATCH_HOME, a file system of its own."""
        return self.folder / "home"

    def tell(self, what: str) -> None:
        """Note what was done to it, and when."""
        self.told.append((time.time(), what))
        print(f"{datetime.now(UTC):%H:%M:%S} {what}", flush=True)

    def start(self) -> None:
        """Start `up`."""
        env = os.environ | {"AGEWATCH_HOME": str(self.home), "PREFECT_WORKER_QUERY_SECONDS": str(self.query_seconds)}
        env |= {"OMP_NUM_THREADS": "1", "AGEWATCH_MEMORY_GB": "2"} | self.env
        command = [sys.executable, "-m", "agewatch", "up", "--port", str(self.port)]
        with (self.folder / "up.log").open("ab") as log:
            self.up = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def look(self) -> None:
        """Be the service manager."""
        if self.up is None or self.up.poll() is not None:
            time.sleep(_BREATH)
            self.start()

    def add(self, archive: str, count: int = 2) -> None:
        """Add pictures to an archive that is there."""
        folder = self.folder / archive
        if folder.is_dir():
            for _ in range(count):
                self.made += 1
                pixels = np.random.default_rng(self.made).integers(0, 255, (48, 48, 3), np.uint8)
                Image.fromarray(pixels).resize((96, 96)).save(folder / f"{self.made:05d}.png")

    def processes(self, kind: str) -> list[psutil.Process]:
        """The processes of a part of this desk's `up`; of all with `everything`."""
        words = {"server": "server start", "worker": "worker start", "flow": "PREFECT__FLOW_RUN_ID", "everything": ""}
        found = []
        for process in psutil.process_iter():
            try:
                env, line = process.environ(), " ".join(process.cmdline())
            except (psutil.Error, OSError):
                continue
            if env.get("AGEWATCH_HOME") != str(self.home) or process.pid == os.getpid():
                continue
            if words[kind] in line or (kind == "flow" and words[kind] in env):
                found.append(process)
        return found

    def kill(self, kind: str) -> bool:
        """Kill a part; False where there is none now."""
        victims = self.processes(kind)
        for process in victims:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if victims:
            self.tell(f"kill -9 {kind}: {len(victims)}")
        return bool(victims)


def main(nights: int = 90, seconds: int = 45, seed: int = 1) -> int:
    """Run it, and return the number of lies that were found."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="agewatch-nights-"))
    desk = Desk(folder, seconds, free_ports(1)[0])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(_made(desk.home))], check=True)
    try:
        anchor = prepare(desk)
        desk.start()
        wait(desk, anchor)
        plan = _plan(rng, nights, seconds)
        live(desk, plan, anchor, nights)
        lies, lines = judge(desk, anchor, nights)
    finally:
        desk.kill("everything")
        subprocess.run(["umount", "-l", str(desk.home)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lies) or "no lie was found")
    faults = ", ".join(f"{n} x {kind}" for kind, n in Counter(kind for _, kind in plan).items())
    head = f"Written by `benchmarks/nights.py {nights} {seconds:g}`; seed {seed}; faults at random moments: {faults}."
    found = table(["archive", "nights", "outcomes", "alerts", "files", "rows"], lines)
    write_section("Nights", f"{head}\n\n{found}\n\nUntruths found: {len(lies)}.\n")
    return len(lies)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def prepare(desk: Desk) -> datetime:
    """Archives, and a `prefect.yaml` of nights that begin in two minutes; returns when the first is due."""
    for archive in ARCHIVES:
        (desk.folder / archive).mkdir()
        desk.add(archive, 5)
    run = [sys.executable, "-m", "agewatch", "init", *ARCHIVES]
    subprocess.run(run, cwd=desk.folder, env=os.environ | {"AGEWATCH_HOME": str(desk.home)}, check=True)
    anchor = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=120)
    _set(desk, {"cron": None, "timezone": "UTC", "interval": desk.seconds, "anchor_date": anchor.isoformat()})
    return anchor


def wait(desk: Desk, until: datetime) -> None:
    """Wait until the first night is due."""
    while datetime.now(UTC) < until - timedelta(seconds=1):
        time.sleep(0.5)
    desk.tell("the first night is due")


def _plan(rng: random.Random, nights: int, seconds: float) -> list[tuple[float, str]]:
    """Faults and their moments, seconds from the first night on; the last nights are left in peace."""
    share = nights / 90
    kinds = [kind for kind, n in FAULTS.items() for _ in range(max(1, round(n * share)))]
    kinds += [f"away {archive}" for archive in ARCHIVES]
    return sorted((rng.uniform(0, (nights - 4) * seconds), kind) for kind in kinds)


def live(desk: Desk, plan: list[tuple[float, str]], anchor: datetime, nights: int) -> None:
    """Let the nights come and do to it what the plan says; pictures arrive meanwhile. Ends when all is quiet."""
    start, later = anchor.timestamp(), list[tuple[float, Callable[[], None]]]()
    todo, end = list(plan), anchor.timestamp() + nights * desk.seconds
    added = 0.0
    while time.time() < end:
        desk.look()
        if time.time() - added > desk.seconds / 2 and time.time() < end - 3 * desk.seconds:
            added = time.time()
            for archive in ARCHIVES:
                desk.add(archive)
        while todo and time.time() - start >= todo[0][0]:
            kind = todo.pop(0)[1]
            if not _do(desk, kind, later):  # nothing is there to be killed: soon again
                todo = sorted([*todo, (time.time() - start + 0.5, kind)])
        for _when, undo in [each for each in later if each[0] <= time.time()]:
            undo()
            later[:] = [each for each in later if each[1] is not undo]
        time.sleep(0.3)
    for _, undo in later:
        undo()
    _set(desk, {"active": False})
    desk.tell("the last night is over; what is left may end")
    deadline = time.time() + 600
    time.sleep(90)  # `up` looks into its file every half minute
    while (Ledger(desk.home).under_way() or prefect_runs(desk.port, "RUNNING", "PENDING")) and time.time() < deadline:
        desk.look()
        time.sleep(2)


def _set(desk: Desk, schedule: dict[str, object]) -> None:
    """Change the schedule of all archives."""
    file = desk.folder / "prefect.yaml"
    content = yaml.safe_load(file.read_text())
    for deployment in content["deployments"]:
        deployment["schedules"] = [{**(deployment.get("schedules") or [{}])[0], **schedule}]
        deployment["parameters"]["mode"] = "crop"
    file.write_text(yaml.safe_dump(content))


def prefect_runs(port: int, *states: str) -> list[dict[str, Any]]:
    """Prefect's flow runs in these types of state."""
    url, found = f"http://127.0.0.1:{port}/api/flow_runs/filter", list[dict[str, Any]]()
    asked = {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": 200, "sort": "EXPECTED_START_TIME_ASC"}
    while page := httpx.post(url, timeout=60, trust_env=False, json={**asked, "offset": len(found)}).json():
        found += page
    return found


def _do(desk: Desk, kind: str, later: list[tuple[float, Callable[[], None]]]) -> bool:
    """Do one thing to it; False where it can't be done now."""

    def after(nights: float, what: str, act: Callable[[], object]) -> None:
        later.append((time.time() + nights * desk.seconds, lambda: _undo(desk, what, act)))

    if kind in ("flow", "worker", "server", "everything"):
        return desk.kill(kind)
    if kind == "restart" and desk.up is not None:
        desk.tell("up is told to stop")
        desk.up.send_signal(signal.SIGTERM)
        desk.up.wait()
        desk.tell("up has stopped")
    elif kind == "full disk":
        filler = desk.home / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(2**16)):
                pass
        desk.tell("the disk is full")
        after(FULL_NIGHTS, "the disk has room", filler.unlink)
    elif kind == "slow night":
        held = desk.processes("flow")
        for process in held:
            process.suspend()
            after(SLOW_NIGHTS, "goes on", process.resume)
        if held:
            desk.tell(f"flows are held: {len(held)}")
        return bool(held)
    else:
        folder = desk.folder / kind.removeprefix("away ")
        away = folder.with_suffix(".away")
        folder.rename(away)
        desk.tell(f"{folder.name} is away")
        after(AWAY_NIGHTS, f"{folder.name} is back", lambda: away.rename(folder))
    return True


def _undo(desk: Desk, what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except (OSError, psutil.Error) as error:
        what += f" ({error!r})"
    desk.tell(what)


def judge(desk: Desk, anchor: datetime, nights: int) -> tuple[list[str], list[list[str]]]:
    """What the ledger, the table and Prefect say, against what was done to them."""
    lies, lines = [], []
    ledger = Ledger(desk.home)
    due = [anchor + timedelta(seconds=desk.seconds * number) for number in range(nights)]
    news = ledger.news()
    for archive in ARCHIVES:
        rows = {night.due: night for night in ledger.nights(archive, "night")}
        mine = [rows.get(when) for when in due]
        lies += [
            f"{archive}: the night of {when:%H:%M:%S} has no row"
            for when, row in zip(due, mine, strict=True)
            if not row
        ]
        lies += [lie for row in mine if row is not None and (lie := _lie(desk, row, [*rows.values()]))]
        told = Counter(each.due for each in news if each.archive == archive and each.what != "drift")
        lies += [f"{archive}: told {n} times of the night of {when}" for when, n in told.items() if n > 1]
        lies += [
            f"{archive}: nobody is told of {row.due:%H:%M:%S}, {row.outcome}"
            for row in mine
            if row is not None and row.outcome in TROUBLE and row.due not in told
        ]
        files = len(list((desk.folder / archive).iterdir()))
        stored = [
            row["path"] for row in predictions.read(desk.home / "predictions").to_pylist() if row["archive"] == archive
        ]
        if len(stored) != len(set(stored)) or len(stored) != files:
            lies.append(f"{archive}: {files} files, {len(stored)} rows, {len(set(stored))} paths")
        outcomes = Counter(str(row.outcome) for row in mine if row is not None)
        lines.append([
            archive, str(len(mine)), ", ".join(f"{n} {what}" for what, n in outcomes.most_common()), str(len(told)),
            str(files), str(len(stored)),
        ])  # fmt: skip
        for row in mine:
            if row is not None:
                print(archive, f"{row.due:%H:%M:%S}", row.started and f"{row.started:%H:%M:%S}",
                      row.ended and f"{row.ended:%H:%M:%S}", row.outcome, row.attempts, row.reason or "")  # fmt: skip
    for run in prefect_runs(desk.port, "RUNNING", "PENDING", "CANCELLING", "SCHEDULED"):
        expected = datetime.fromisoformat(run["expected_start_time"])
        if run["state_type"] != "SCHEDULED" or expected < datetime.now(UTC) - timedelta(seconds=2 * desk.seconds):
            lies.append(f"Prefect: {run['name']} is {run['state_name']} since {run['state']['timestamp']}")
    print(json.dumps([[each.archive, f"{each.due:%H:%M:%S}", each.what] for each in news]))
    return lies, lines


def _was_running(row: Night, others: list[Night]) -> bool:
    """Tell whether another night of the archive was under way when this one was skipped.

    One that crashed ended some time after it was last heard of.
    """
    ended = row.ended or row.due
    return any(
        other.started is not None
        and other.started <= ended
        and (other.outcome == "crashed" or ended <= (other.ended or ended) + timedelta(seconds=1))
        for other in others
        if other.due != row.due
    )


def _lie(desk: Desk, row: Night, others: list[Night]) -> str | None:
    """A row that says what can't have been, by what was done at the time."""
    start, end = row.due.timestamp() - 2, (row.ended or row.due).timestamp() + 60
    near = [what for when, what in desk.told if start - 2 * desk.seconds <= when <= end]
    why = {
        "crashed": lambda: any("kill -9 flow" in what or "kill -9 everything" in what for what in near),
        "missed": lambda: any(word in what for what in near for word in ("kill", "stop", "full", "held", "is away")),
        "gone": lambda: any(f"{row.archive} is away" in what for what in near),
        "failed": lambda: any("full" in what for what in near),
        # A flow whose worker is killed is told to stop by what stood between them.
        "stopped": lambda: any("told to stop" in what or "kill -9 worker" in what for what in near),
        "skipped": lambda: _was_running(row, others),
    }
    if row.outcome is None:
        return f"{row.archive}: the night of {row.due:%H:%M:%S} never ended"
    if row.outcome in why and not why[row.outcome]():
        return f"{row.archive}: the night of {row.due:%H:%M:%S} is called {row.outcome} without cause: {row.reason}"
    return None


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
