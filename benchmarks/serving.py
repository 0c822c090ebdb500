"""What the server stands up to, on portraits of AGEWATCH_DATA; written to RESULTS.md.

    python benchmarks/serving.py [SECONDS] [TRIAL...]

SECONDS (60) is how long each rate, the crowd, and a tenth of the mixed load last; with fewer, `score` has fewer than
its 1,500 portraits. Without names all trials run.
"""

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
from results import table, write_section
from serving_load import Client, Server, Told, answer, bomb_jpeg, bomb_png, crowd, request, served

from agewatch.processes import LOOPBACK

PORTRAITS = 1500
Trial = Callable[[Server, list[bytes], float], Coroutine[Any, Any, list[list[str]]]]


async def rates(server: Server, pictures: list[bytes], seconds: float) -> list[list[str]]:
    """Interleaved with `score` of the same pictures; time on a core is the fairer figure on a busy machine."""
    rows = []
    await crowd(server, pictures, 16, 10)  # Java is slow at first
    for clients in (1, 4, 16, 64):
        rate, cost = await asyncio.to_thread(_scored, server, pictures[: int(PORTRAITS / 60 * seconds)])
        used, started = server.cpu_seconds(), time.perf_counter()
        told = await crowd(server, pictures, clients, seconds)
        passed, count = time.perf_counter() - started, sum(status == "200" for _, status, _ in told.answers)
        its = (server.cpu_seconds() - used) / count
        rows.append([f"{clients} clients",
                     f"{count / passed:.1f}/s beside {rate:.1f}/s of `score`: {count / passed / rate:.2f};"
                     f" {1000 * its:.1f} ms of a core a picture beside {1000 * cost:.1f}: {cost / its:.2f};"
                     f" p50 {1000 * told.seconds(0.5):.0f} ms, p99 {1000 * told.seconds(0.99):.0f} ms;"
                     f" {told.counts()}"])  # fmt: skip
    return rows


def _scored(server: Server, pictures: list[bytes]) -> tuple[float, float]:
    """Pictures a second, and seconds of a core a picture, of `score`, without its start."""
    env = {**os.environ, "AGEWATCH_HOME": str(server.home), "AGEWATCH_MODEL_STORE": str(server.store)}
    found = []
    for count in (2, len(pictures)):
        with tempfile.TemporaryDirectory() as folder:
            for index, picture in enumerate(pictures[:count]):
                Path(folder, f"{index}.jpg").write_bytes(picture)
            command = [sys.executable, "-m", "agewatch", "score", folder, "--json",
                       "--predictions", f"{folder}-table"]  # fmt: skip
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            shutil.rmtree(f"{folder}-table", ignore_errors=True)
        core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - started, core))
    count = len(pictures) - 2
    return count / (found[1][0] - found[0][0]), (found[1][1] - found[0][1]) / count


async def batches(server: Server, pictures: list[bytes], _seconds: float) -> list[list[str]]:
    """64 times 8 pictures at once, 0 to 8 of them torn, at every position: each answer is its picture's own."""
    alone, told = Told(), Told()
    client = Client(server, alone)
    known = [await client.send(picture) for picture in pictures[:64]]
    worst, wrong = 0.0, 0
    for turn in range(64):
        torn = {(turn + k) % 8 for k in range(turn % 9)}
        clients = [Client(server, told) for _ in range(8)]
        sent = [(8 * turn + k) % 64 for k in range(8)]
        got = await asyncio.gather(
            *(each.send(pictures[n][: len(pictures[n]) // 2] if k in torn else pictures[n])
              for k, (n, each) in enumerate(zip(sent, clients, strict=True)))
        )  # fmt: skip
        for k, n in enumerate(sent):
            if k in torn:
                wrong += got[k].get("error", {}).get("code") != "truncated"
                continue
            ages = [[face["age"] for face in each.get("faces", [])] for each in (got[k], known[n])]
            wrong += len(ages[0]) != len(ages[1])
            worst = max([worst, *(abs(a - b) for a, b in zip(*ages, strict=False))])
        for each in clients:
            each.close()
    return [["64 batches of 8, 0 to 8 torn", f"{wrong} mismatches; ages at most {worst:.5f} years apart"]]


async def bombs(server: Server, pictures: list[bytes], _seconds: float) -> list[list[str]]:
    """Portraits meanwhile, from 7 clients."""
    jpeg, png = bomb_jpeg(), bomb_png()
    rows = []
    for name, sent in {
        "a JPEG of 6,000 scans": [jpeg],
        "two of them": [jpeg, jpeg],
        "169-megapixel PNG": [png],
    }.items():
        worst, told, ended = [0.0], Told(), asyncio.Event()

        async def watch(worst: list[float] = worst, ended: asyncio.Event = ended) -> None:
            while not ended.is_set():
                worst[0] = max([worst[0], *(each.memory_info().rss / 1e9 for each in server.processes("looker"))])
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        meant = asyncio.gather(*(Client(server, told).send(each) for each in sent))
        others = Told()
        while not meant.done():
            others.answers += (await crowd(server, pictures, 7, 1)).answers
        ended.set()
        await asyncio.gather(watching, meant)
        codes = {each["error"]["code"] if each and "error" in each else "no answer" for _, _, each in told.answers}
        rows.append([name, f"{told.counts()} ({', '.join(codes)}) after {max(s for s, _, _ in told.answers):.0f} s;"
                     f" portraits meanwhile {others.counts()}, the slowest {others.seconds(1):.2f} s;"
                     f" largest looking process {worst[0]:.2f} GB"])  # fmt: skip
    return rows


async def strangers(server: Server, pictures: list[bytes], _seconds: float) -> list[list[str]]:
    """Without a token, slowly, and all at once."""
    before, peak = server.memory_mb(), 0.0
    head = request(b"", "wrong").replace(b"Content-Length: 0", b"Content-Length: 60000000")
    streams = [await asyncio.open_connection(LOOPBACK, server.port) for _ in range(95)]
    for _, writer in streams:
        writer.write(head + bytes(8_000_000))
    for _ in range(10):
        await asyncio.sleep(0.5)
        peak = max(peak, server.memory_mb())
    statuses = {(await answer(reader))[0] for reader, _ in streams}
    for _, writer in streams:
        writer.transport.abort()
    slow = [await _cut_after(server, start) for start in (request(bytes(900), server.token)[:-900], b"POST /")]
    client, told = Client(server, Told()), list[Any]()
    known = [await client.send(picture) for picture in pictures[:20]]
    reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
    writer.write(b"".join(request(picture, server.token) for picture in pictures[:20]))
    for _ in range(20):
        told.append(json.loads((await answer(reader))[1]))
    order = sum(
        a["faces"][:1] and a["faces"][0]["box"] == b["faces"][0]["box"] for a, b in zip(told, known, strict=True)
    )
    shown = any(server.token in " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
    return [
        ["95 uploads without a token", f"{statuses}; memory {before:.0f} MB before, {peak:.0f} MB at most meanwhile"],
        ["a byte a second, in the body; in the head", f"cut after {slow[0]:.0f} s; {slow[1]:.0f} s"],
        ["20 pipelined requests", f"{order} of 20 in order"],
        ["TCP ports; token in the list of processes", f"{server.listening()}; {'yes' if shown else 'no'}"],
    ]


def _boxes(answer: Any) -> Any:
    return answer and [face["box"] for face in answer.get("faces", [])]


async def _cut_after(server: Server, start: bytes) -> float:
    reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
    writer.write(start)
    started = time.perf_counter()
    while time.perf_counter() - started < 60:
        try:
            writer.write(b"x")
            async with asyncio.timeout(1):
                if not await reader.read(1):
                    break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.perf_counter() - started


async def full(server: Server, pictures: list[bytes], seconds: float) -> list[list[str]]:
    """1,500 clients."""
    log = server.home / "serve" / str(server.port) / "logs" / "door.log"
    before = log.stat().st_size
    told = await crowd(server, pictures, 1500, seconds)
    grown = (log.stat().st_size - before) / len(told.answers)
    return [[f"1,500 clients for {seconds:.0f} s", f"{told.counts()}; {grown / 100:.2f} MB of log for 10,000 requests"]]


async def faults(server: Server, pictures: list[bytes], seconds: float) -> list[list[str]]:
    """kill -9 of what stands behind the door, at 16 clients, and of the door."""
    rows = []
    for kind in ("worker", "looker", "java"):
        killed = asyncio.create_task(_killed_after(server, kind, 3))
        load = await crowd(server, pictures, 16, max(30.0, seconds))
        rows.append([f"kill -9 of a {kind}", f"{load.counts()}; {await killed}"])
    family = server.processes()
    server.process.kill()
    started = time.perf_counter()
    _, left = await asyncio.to_thread(psutil.wait_procs, family, 30)
    lasted = time.perf_counter() - started
    return [
        *rows,
        ["kill -9 of the door", f"{len(family) - len(left)} of {len(family)} processes gone in {lasted:.1f} s"],
    ]


async def _killed_after(server: Server, kind: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    server.processes(kind)[0].kill()
    started, away = time.perf_counter(), 0.0
    told = Told()
    await asyncio.sleep(0.5)
    while time.perf_counter() - started < 25:
        client = Client(server, told)
        await client.send(b"")
        client.close()
        if told.answers[-1][1] == "503":
            away = time.perf_counter() - started
        await asyncio.sleep(0.25)
    return f"503 until {away:.1f} s after" if away else "the door never said 503"


async def stopped(server: Server, pictures: list[bytes], _seconds: float) -> list[list[str]]:
    """SIGTERM with 32 under way."""
    told = Told()
    sent = asyncio.gather(*(Client(server, told).send(picture) for picture in pictures[:32]))
    await asyncio.sleep(0.3)
    under_way, started = 32 - len(told.answers), time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await sent
    code = await asyncio.to_thread(server.process.wait)
    return [[f"SIGTERM with {under_way} of 32 under way",
             f"{told.counts()}; exit {code} after {time.perf_counter() - started:.1f} s"]]  # fmt: skip


async def versions(server: Server, pictures: list[bytes], _seconds: float) -> list[list[str]]:
    """Promote and roll back at 16 clients."""
    env = {**os.environ, "AGEWATCH_HOME": str(server.home), "AGEWATCH_MODEL_STORE": str(server.store)}
    with tempfile.TemporaryDirectory() as folder:
        [mar] = server.store.glob("*.mar")
        shutil.unpack_archive(mar, folder, "zip")
        shutil.rmtree(Path(folder, "agewatch"))
        _agewatch(env, "package", folder, "--version", "next")
    rows = []
    for what in (["promote", str(server.store / "agewatch-next.mar"), "--force"], ["rollback"]):
        before, load, began = server.model(), Told(), time.perf_counter()
        told = asyncio.create_task(asyncio.to_thread(_agewatch, env, "models", *what))
        while server.model() == before and time.perf_counter() - began < 120:
            load.answers += (await crowd(server, pictures, 16, 3)).answers
        lasted = time.perf_counter() - began
        load.answers += (await crowd(server, pictures, 16, 5)).answers
        await told
        ids = [each["model"] for _, status, each in load.answers if status == "200"]
        changes = sum(a != b for a, b in itertools.pairwise(ids))
        rows.append([f"models {what[0]} at 16 clients",
                     f"{load.counts()}; {len(set(ids))} ids, {changes} changes in the"
                     f" order of answers; the command and the change took {lasted:.0f} s"])  # fmt: skip
    return rows


def _agewatch(env: dict[str, str], *words: str) -> None:
    subprocess.run([sys.executable, "-m", "agewatch", *words], env=env, check=True, stdout=subprocess.DEVNULL)


async def mixed(server: Server, pictures: list[bytes], seconds: float) -> list[list[str]]:
    """Good, torn, huge, slow and cut off, for ten times as long."""
    told, known, wrong = Told(), {}, 0
    client, until = Client(server, told), time.perf_counter() + 10 * seconds
    for index in range(40):
        known[index] = await client.send(pictures[index])
    png, memory = bomb_png(9_000), [server.memory_mb()]

    async def good(start: int) -> None:
        nonlocal wrong
        mine = Client(server, told)
        for turn in range(start, sys.maxsize):
            if time.perf_counter() > until:
                return
            got = await mine.send(pictures[turn % 40])
            wrong += got is None or [f["box"] for f in got.get("faces", [])] != [
                f["box"] for f in known[turn % 40]["faces"]
            ]

    async def bad() -> None:
        while time.perf_counter() < until:
            await Client(server, Told()).send(pictures[0][:2000])
            await Client(server, Told()).send(png)
            _, writer = await asyncio.open_connection(LOOPBACK, server.port)
            writer.write(request(pictures[1], server.token)[:-500])
            await asyncio.sleep(1)
            writer.transport.abort()
            memory.append(server.memory_mb())

    await asyncio.gather(*(good(k) for k in range(6)), bad(), _cut_after(server, b"POST /"))
    quarter = len(memory) // 4
    medians = [f"{statistics.median(memory[k * quarter : (k + 1) * quarter]):.0f}" for k in range(4)]
    return [[f"mixed load for {10 * seconds / 60:.0f} minutes", f"{told.counts()}; {wrong} wrong; memory"
             f" {memory[0]:.0f} MB at first, medians of the four quarters {', '.join(medians)} MB, at most"
             f" {max(memory):.0f} MB"]]  # fmt: skip


TRIALS: dict[str, Trial] = {
    each.__name__: each for each in (rates, batches, bombs, strangers, full, mixed, versions, stopped, faults)
}


def main() -> None:
    """Run the trials, each on a server of its own."""
    seconds = float(next((word for word in sys.argv[1:] if word not in TRIALS), "60"))
    names = [word for word in sys.argv[1:] if word in TRIALS] or list(TRIALS)
    found = sorted(Path(os.environ["AGEWATCH_DATA"], "archive_portraits").rglob("*.jpg"))
    pictures = [file.read_bytes() for file in found[:PORTRAITS]]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="aw-") as folder, served(Path(folder)) as server:
            rows = asyncio.run(TRIALS[name](server, pictures, seconds))
        told = f"Written by `benchmarks/serving.py {seconds:g} {name}`; {os.cpu_count()} cores"
        load = f"{os.getloadavg()[1]:.0f} processes that wanted one on average, ours among them"
        about = (TRIALS[name].__doc__ or "").strip()
        write_section(f"Serving: {name}", f"{told}, {load}. {about}\n\n{table(['trial', 'seen'], rows)}")


if __name__ == "__main__":
    main()
