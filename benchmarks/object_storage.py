"""What reading from object storage costs the client: obstore beside s3fs (fsspec) and Arrow's own file system.

Against a server on loopback that does nothing but answer, in a process of its own. S3FS_PYTHON names a Python that has
s3fs and pyarrow; without it obstore stands alone.
"""

import asyncio
import json
import os
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

from results import table, write_section

from agewatch.processes import free_ports

KEYS, READ, SIZE = 20_000, 2_000, 30_000
CLIENT = """
import json, os, resource, time
from concurrent.futures import ThreadPoolExecutor

def used(call):
    cpu, wall = time.process_time(), time.perf_counter()
    found = call()
    return found, time.process_time() - cpu, time.perf_counter() - wall

class Obstore:
    def __init__(self):
        import obstore
        from obstore.store import S3Store
        self.library, self.store = obstore, S3Store("b")
    def list(self):
        return [found["path"] for chunk in self.library.list(self.store, chunk_size=1000) for found in chunk]
    def read(self, path):
        return len(self.library.get(self.store, path).bytes())

class S3fs:
    def __init__(self):
        import s3fs
        self.files = s3fs.S3FileSystem()
    def list(self):
        return list(self.files.find("b", detail=True))
    def read(self, path):
        return len(self.files.cat_file(path))

class Arrow:
    def __init__(self):
        from pyarrow import fs
        self.selector, self.kind = fs.FileSelector, fs.FileType.File
        self.files = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    def list(self):
        found = self.files.get_file_info(self.selector("b", recursive=True))
        return [each.path for each in found if each.type == self.kind]
    def read(self, path):
        with self.files.open_input_stream(path) as opened:
            return len(opened.read())

client, opening, _ = used({"obstore": Obstore, "s3fs": S3fs, "pyarrow": Arrow}[os.environ["CLIENT"]])
paths, listing, _ = used(client.list)
with ThreadPoolExecutor(8) as threads:
    read, reading, wall = used(lambda: sum(threads.map(client.read, paths[:int(os.environ["READ"])])))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([opening, len(paths), listing, read, reading, wall, peak]))
"""


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    [port] = free_ports(1)
    server = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        rows = [_row(name, port) for name in ("obstore", "s3fs", "pyarrow") if name == "obstore" or _other()]
    finally:
        server.kill()
    header = ["client", "CPU s to open", f"CPU s to list {KEYS:,} keys", "CPU ms a read", "reads a second", "peak MB"]
    write_section(
        "Object storage",
        f"Written by `make bench`: {READ:,} reads of {SIZE:,} bytes by 8 threads from a server on loopback, which takes"
        f" one of two cores.\n\n{table(header, rows)}",
    )


def _other() -> str | None:
    return os.environ.get("S3FS_PYTHON")


def _row(name: str, port: int) -> list[str]:
    python = sys.executable if name == "obstore" else _other() or ""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "CLIENT": name, "READ": str(READ)}
    done = subprocess.run(
        [python, "-c", CLIENT], env=os.environ | keys | place, capture_output=True, text=True, check=True
    )
    opening, found, listing, read, reading, wall, peak = json.loads(done.stdout)
    assert (found, read) == (KEYS, READ * SIZE)
    return [
        name, f"{opening:.2f}", f"{listing:.2f}", f"{reading / READ * 1000:.2f}", f"{READ / wall:,.0f}", f"{peak:.0f}"
    ]  # fmt: skip


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection: a page of keys, or one of the equal objects."""
    kind = b'ETag: "a"\r\nLast-Modified: Mon, 30 Nov 2026 15:00:00 GMT\r\n'
    try:
        while True:
            method, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0].split(" ")
            asked = parse_qs(urlsplit(target).query)
            body = _page(int(asked.get("continuation-token", ["0"])[0])) if "list-type" in asked else bytes(SIZE)
            writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (kind, len(body)))
            writer.write(b"" if method == "HEAD" else body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _page(start: int) -> bytes:
    end = min(start + 1000, KEYS)
    told = "<LastModified>2026-11-30T15:00:00.000Z</LastModified><ETag>a</ETag><StorageClass>STANDARD</StorageClass>"
    objects = (f"<Contents><Key>{n:06}.jpg</Key>{told}<Size>{SIZE}</Size></Contents>" for n in range(start, end))
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < KEYS else ""
    return (
        f"<ListBucketResult><Name>b</Name><Prefix></Prefix><KeyCount>{end - start}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{''.join(objects)}</ListBucketResult>"
    ).encode()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]))) if len(sys.argv) > 1 else main()
