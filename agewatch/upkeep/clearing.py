"""Deleting what is old: a folder is renamed first, so that it is there whole or not at all."""

import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

_GOING = ".tidied-"


@dataclass
class Cleared:
    """So many files, folders or rows went, and so many bytes."""

    n: int = 0
    bytes: int = 0

    def folder(self, folder: Path) -> None:
        """Delete a folder. Raises OSError where that is not possible."""
        going = folder.with_name(f"{_GOING}{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            folder.rename(going)
            self.n += 1
            self._delete(going)

    def file(self, file: Path) -> None:
        """Delete a file. Raises OSError where that is not possible."""
        with suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            self.n += 1
            self.bytes += size

    def left(self, within: Path) -> None:
        """Delete what a killed process had renamed and not deleted in a folder."""
        for folder in folders(within):
            if folder.name.startswith(_GOING):
                self._delete(folder)

    def _delete(self, folder: Path) -> None:
        self.bytes += sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)


def folders(within: Path) -> list[Path]:
    """The folders in a folder, by name, that are no links; none where it can't be listed."""
    try:
        return [path for path in sorted(within.iterdir()) if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def age(path: Path, now: datetime) -> timedelta:
    """Since when a file or folder has not changed; nothing where it is gone."""
    try:
        return now - datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return timedelta(0)
