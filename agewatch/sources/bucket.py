"""What lies below a prefix in object storage."""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import Any

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.sources.source import (
    MAX_BYTES,
    FileRef,
    Read,
    Sieve,
    Source,
    decode_path,
    encode_path,
    stamped,
    too_large,
)
from agewatch.sources.storage import open_store

AHEAD = 8
"""Files that each worker has on their way while it works on one."""
_AHEAD_BYTES = 32_000_000
_CHUNK = 1_000  # keys: a page of S3's


class Bucket(Source):
    """Objects below a URL; a key is a path. Objects without bytes and suffix mark folders, and are passed over."""

    def __init__(self, url: str) -> None:
        self.root = url
        self.name = url.rpartition("/")[2]
        self._store: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which opens a client of its own."""
        return vars(self) | {"_store": None}

    def require_there(self) -> None:
        """Raise UsageError where nothing lies below the URL, AgewatchError where that can't be told."""
        try:
            is_there = any(True for chunk in obstore.list(self._opened(), chunk_size=1) for _ in chunk)
        except InvalidPathError:
            return
        except BaseError as error:
            if "404" not in _plain(error):
                raise self._unlistable(error) from error
            is_there = False  # the bucket
        if not is_there:
            raise UsageError(f"There is nothing at {self.root}.")

    def walk(self, sieve: Sieve) -> Iterator[FileRef]:
        """Yield the pictures page by page. Raises AgewatchError where they can't be listed."""
        last = ""
        try:
            for chunk in obstore.list(self._opened(), chunk_size=_CHUNK):
                for found in chunk:
                    file = _file(found)
                    if _is_kept(found, file, sieve):
                        yield file
                    last = file.path
        except InvalidPathError:  # a key that obstore can't tell, such as `a//b`: the folder that it is in is left out
            yield from self._by_folders(sieve, last)
        except BaseError as error:
            raise self._unlistable(error) from error

    def read(self, file: FileRef) -> tuple[bytes, FileRef]:
        """Read an object, as `Source.read` says; `unreadable` where the storage gave no answer for 40 seconds."""
        if (file.bytes or 0) > MAX_BYTES:
            raise too_large(file.bytes or 0)
        try:
            answer = obstore.get(self._opened(), decode_path(file.path).decode())
            if answer.meta["size"] > MAX_BYTES:
                raise too_large(answer.meta["size"])
            return answer.bytes().to_bytes(), _file(answer.meta)
        except MemoryError as error:
            raise ImageError("too_large", "The file does not fit into memory.") from error
        except FileNotFoundError as error:
            raise ImageError("vanished", "The file disappeared before it could be read.") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise ImageError("denied", "The file may not be read by this user.") from error
        except BaseError as error:
            raise ImageError("unreadable", f"The file can't be read: {_plain(error)}.") from error

    def reads(self, files: Sequence[FileRef]) -> Iterator[tuple[FileRef, Read]]:
        """Yield files, a few of which are under way: as many and as large as AHEAD and _AHEAD_BYTES allow."""
        with ThreadPoolExecutor(AHEAD) as threads:
            ahead: deque[tuple[FileRef, Read]] = deque()
            size = 0
            for file in files:
                cost = file.bytes or 0
                while ahead and (len(ahead) >= AHEAD or size + cost > _AHEAD_BYTES):
                    size -= ahead[0][0].bytes or 0
                    yield ahead.popleft()
                is_small = cost <= _AHEAD_BYTES
                ahead.append((file, threads.submit(self.read, file).result if is_small else partial(self.read, file)))
                size += cost
            while ahead:
                yield ahead.popleft()

    def _by_folders(self, sieve: Sieve, last: str) -> Iterator[FileRef]:
        """Yield the pictures beyond a path folder by folder, but for folders that hold a key that can't be told."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                found = obstore.list_with_delimiter(self._opened(), folder or None)
            except InvalidPathError as error:
                if not folder:
                    raise self._unlistable(error) from error
                sieve.unlisted.append(encode_path(folder.encode()))
                continue
            except BaseError as error:
                raise self._unlistable(error) from error
            folders += found["common_prefixes"]
            for each in found["objects"]:
                file = _file(each)
                if file.path > last and _is_kept(each, file, sieve):
                    yield file

    def _opened(self) -> Any:
        if self._store is None:
            self._store = open_store(self.root)
        return self._store

    def _unlistable(self, error: BaseError) -> AgewatchError:
        return AgewatchError(f"{self.root} can't be listed: {_plain(error)}.")


def _file(found: Any) -> FileRef:
    """An object as storage describes it; its ETag stands in the part of the date that is below a second."""
    token = int.from_bytes(blake2b((found["e_tag"] or "").strip('"').encode(), digest_size=8).digest())
    path = encode_path(found["path"].encode())
    return FileRef(path, found["size"], stamped(int(found["last_modified"].timestamp()), token))


def _is_kept(found: Any, file: FileRef, sieve: Sieve) -> bool:
    is_marker = not found["size"] and "." not in file.path.rpartition("/")[2]
    return not is_marker and sieve.keeps_at(file.path)


def _plain(error: BaseError) -> str:
    """Why storage gave no answer, in few words: the library's own hold addresses, and repeat themselves."""
    text = str(error)
    if isinstance(error, InvalidPathError):
        return "a key in it has an empty part, `.` or `..`, or a control character"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "its credentials are missing or not allowed to"
    answered = re.search(r"status code: (\d+[\w ]*)", text)
    return f"it answers {answered[1].strip()}" if answered else "it does not answer"
