"""A real S3 server on loopback (moto's), in a process of its own, that counts what is read and may refuse requests.

`python buckets.py PORT` runs it. `POST /_told?refuse=5` lets it answer 503 to one request in five from then on.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs

import httpx
import obstore
from servers import START_SECONDS, free_port, started, wait_for

from agewatch.sources.storage import open_store

KEYS = {"AWS_ACCESS_KEY_ID": "agewatch-test", "AWS_SECRET_ACCESS_KEY": "never-to-be-seen", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True)
class Buckets:
    """A running server; `environment` is what a command needs to find it."""

    url: str
    environment: dict[str, str]

    def make(self, bucket: str) -> str:
        """Make a bucket; return its URL."""
        httpx.put(f"{self.url}/{bucket}", trust_env=False).raise_for_status()
        return f"s3://{bucket}"

    def put(self, url: str, path: str, data: bytes) -> None:
        """Store an object."""
        obstore.put(open_store(url), path, data)

    def fill(self, url: str, folder: Path) -> None:
        """Store all files of a folder."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(url, file.relative_to(folder).as_posix(), file.read_bytes())

    def refuse(self, one_in: int) -> None:
        """Answer 503 to one request in so many; 0: to none."""
        httpx.post(f"{self.url}/_told?refuse={one_in}", trust_env=False).raise_for_status()

    def reads(self) -> int:
        """How many objects were given out since this was asked last."""
        told: dict[str, int] = httpx.get(f"{self.url}/_told", trust_env=False).json()
        return told["reads"]


@contextmanager
def buckets(folder: Path) -> Iterator[Buckets]:
    """Run the server, whose log lies in a folder."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "buckets.log"
    environment = KEYS | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, __file__, str(port)]
    with started(command, log=log, cwd=folder, env=dict(os.environ)) as process:
        wait_for(f"{url}/_told", process, log, START_SECONDS)
        yield Buckets(url, environment)


def _serve(port: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    moto, told, lock = DomainDispatcherApplication(create_backend_app), {"refuse": 0, "asked": 0, "reads": 0}, Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        with lock:
            if path == "/_told":
                if method == "POST":
                    told["refuse"] = int(parse_qs(query)["refuse"][0])
                said = json.dumps(told).encode()
                told["reads"] = 0
                start_response("200 OK", [("Content-Type", "application/json")])
                return [said]
            told["asked"] += 1
            if told["refuse"] and told["asked"] % told["refuse"] == 0:
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code></Error>"]
            told["reads"] += method == "GET" and path.count("/") > 1 and "list-type" not in query
        return moto(environ, start_response)

    run_simple("127.0.0.1", port, answer, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
