"""What ten million and a thousand million photographs take: unit costs measured here, and the arithmetic.

AGEWATCH_DATA names real pictures: photographs of twelve megapixels are made, each with two of its portraits. Commits go
through the writer of a run, requests are counted by the access log of moto's S3 server on loopback.
"""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import obstore
from bench import AGEWATCH
from PIL import Image
from results import table, write_section

from agewatch.processes import free_ports
from agewatch.scoring.merging import COMMITS as MERGED_AFTER
from agewatch.scoring.pending import SHARD_FILES
from agewatch.scoring.predictions import Key, open_table
from agewatch.scoring.writer import Writer
from agewatch.sources.storage import open_store

BUCKETS = Path(__file__).parents[1] / "tests" / "buckets.py"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
FEW, MANY = 16, 112
COMMITS = 600
IN_BUCKET = 1_000
CORES = 16
FACES = 1.5
_SEEN = ("face_score", "sharpness", "brightness", "contrast")
SIZES = {"10 million": 10**7, "1,000 million": 10**9}


def main() -> None:
    """Measure and write the section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, megabytes = _photograph(Path(folder))
        first, last, bytes_a_row, bytes_a_commit = _commits(Path(folder))
        asked = _requests(Path(folder))
    units = [
        ["a photograph of 12 megapixels with two faces", f"{1000 * seconds:.0f} ms of a core, {megabytes:.1f} MB"],
        [f"a commit of {SHARD_FILES} files, the first {MERGED_AFTER}", f"{1000 * first:.0f} ms of a core"],
        [f"a commit, {COMMITS - MERGED_AFTER} to {COMMITS}", f"{1000 * last:.0f} ms of a core"],
        ["a row, compacted", f"{bytes_a_row:.0f} bytes"],
        ["the log of a commit", f"{bytes_a_commit:,.0f} bytes"],
        ["requests of a bucket a picture, its listing included", f"{asked['pictures']:.3f}"],
        ["requests of a table in a bucket a commit", f"{asked['rows']:.1f}"],
    ]
    rows = []
    for name, n in SIZES.items():
        commits = n / SHARD_FILES
        rows.append([
            name, f"{n * seconds / 3600:,.0f}", f"{n * seconds / 3600 / CORES:,.0f}", f"{n * megabytes / 1e6:,.0f}",
            f"{(n * asked['pictures'] + commits * asked['rows']) / 1e6:,.0f}",
            f"{commits:,.0f}", f"{commits * last / 3600:,.1f}",
            f"{n * FACES * bytes_a_row / 1e9:,.1f}",
        ])  # fmt: skip
    head = ["photographs", "core hours", f"hours of one machine of {CORES} cores", "TB read", "million requests",
            "commits", "hours of a core to commit", f"GB of table, {FACES} faces each"]  # fmt: skip
    write_section(
        "A plan",
        "Written by `benchmarks/plan.py`; measured here, on one of "
        f"{os.cpu_count()} cores each:\n\n{table(['unit', 'cost'], units)}\n\nThe arithmetic:\n\n{table(head, rows)}",
    )


def _photograph(folder: Path) -> tuple[float, float]:
    """Seconds of a core, and megabytes."""
    portraits = sorted((Path(os.environ["AGEWATCH_DATA"]) / "archive_portraits").rglob("*.jpg"))
    rng, sizes, spent = np.random.default_rng(0), list[int](), list[float]()
    for turn, count in enumerate((1, FEW, MANY)):  # the first converts the network
        archive = folder / f"photographs-{count}"
        archive.mkdir()
        for number in range(count):
            soft = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((4000, 3000))
            for place in (600, 2400):
                face = Image.open(portraits[rng.integers(len(portraits))]).convert("RGB").resize((700, 700))
                soft.paste(face, (place, 1000))
            content = io.BytesIO()
            noisy = np.asarray(soft, np.int16) + rng.integers(-6, 7, (3000, 4000, 1), np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=88)
            (archive / f"{number}.jpg").write_bytes(content.getvalue())
            sizes.append(len(content.getvalue()))
        before = os.times()
        table = folder / f"table-{count}"
        subprocess.run([AGEWATCH, "score", archive, "--predictions", table, "--json"], check=True, capture_output=True)
        after = os.times()
        if turn:
            spent.append(after[2] + after[3] - before[2] - before[3])
    return (spent[1] - spent[0]) / (MANY - FEW), float(np.mean(sizes)) / 1e6


def _commits(folder: Path) -> tuple[float, float, float, float]:
    """Seconds of a core of an early and of a late commit; bytes of a row in the end, and of the log a commit."""
    writer = Writer(folder / "table", Key("a", "m-1@0", "detect"), root=folder)
    rng, spent = np.random.default_rng(0), list[float]()
    for commit in range(COMMITS):
        rows = [
            {
                "archive": "a", "model": "m-1@0", "mode": "detect", "engine": "openvino-f32", "run_id": "r",
                "path": f"{commit // 40:04}/IMG_{commit:05}{number:03}.jpg", "face": 0, "status": "ok",
                "content_hash": rng.bytes(32).hex(), "bytes": number, "mtime_ns": int(rng.integers(10**18)),
                "scored_at": datetime.now(UTC), "age": float(age), "age_low": float(age) - 14,
                "age_high": float(age) + 14, "box_x": float(age), "box_y": float(age), "box_w": float(age),
                "box_h": float(age), **{name: float(rng.random()) for name in _SEEN},
            }
            for number, age in enumerate(rng.uniform(0, 90, SHARD_FILES))
        ]  # fmt: skip
        started = time.process_time()
        writer.write(rows)
        spent.append(time.process_time() - started)
    held = open_table(folder / "table")
    held.optimize.compact()
    bytes_a_row = sum(held.get_add_actions()["size_bytes"].to_pylist()) / (COMMITS * SHARD_FILES)
    log = sum(file.stat().st_size for file in (folder / "table" / "_delta_log").iterdir())
    some = MERGED_AFTER
    return sum(spent[:some]) / some, sum(spent[-some:]) / some, bytes_a_row, log / COMMITS


def _requests(folder: Path) -> dict[str, float]:
    """Requests of a bucket a picture, and of the table's a commit, of scoring IN_BUCKET small pictures."""
    port = free_ports(1)[0]
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([sys.executable, BUCKETS, str(port)], stderr=log) as server,
    ):
        try:
            ask = httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=10), timeout=60
            )
            for bucket in ("pictures", "rows"):
                ask.put(f"/{bucket}").raise_for_status()
            rng, pictures = np.random.default_rng(0), open_store("s3://pictures")
            for number in range(IN_BUCKET):
                content = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(content, "PNG")
                obstore.put(pictures, f"{number // 100}/{number}.png", content.getvalue())
            start = (folder / "log").stat().st_size
            command = [str(AGEWATCH), "score", "s3://pictures", "--predictions", "s3://rows/table", "--faces", "crop"]
            done = subprocess.run([*command, "--json"], capture_output=True, check=False)
            assert json.loads(done.stdout)["found"] == IN_BUCKET, done.stderr.decode()
        finally:
            server.kill()
    text = (folder / "log").read_bytes()[start:].decode(errors="replace")
    asked = Counter(re.findall(r'"[A-Z]+ /(pictures|rows)', text))
    commits = len(set(re.findall(r"/rows/table/_delta_log/(\d{20})\.json", text)))
    return {"pictures": asked["pictures"] / IN_BUCKET, "rows": asked["rows"] / commits}


if __name__ == "__main__":
    main()
