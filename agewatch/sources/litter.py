"""What systems, network storage and photo programs keep beside pictures: passed over, and never counted.

Names as their makers document them or users report them: bins, snapshots, thumbnails, previews, indexes, and folders of
our own. Case plays no part, as most of these lie on file systems where it plays none.
"""

import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec

from agewatch.errors import UsageError

_FOLDERS = frozenset(
    {
        "#recycle", "@eadir", "#snapshot", "@sharesnap", "@tmp",  # Synology
        "@recycle", "@recently-snapshot", ".@__thumb", ".@upload_cache", ".@__qini",  # QNAP
        ".recycle", "network trash folder", "temporary items",  # Samba, netatalk
        ".snapshot", ".snapshots", "~snapshot", ".zfs", ".ckpt",  # NetApp, snapper, ZFS, EMC
        "$recycle.bin", "recycler", "system volume information",  # Windows
        ".trash", ".trashes", "lost+found", ".thumbnails", ".xvpics",  # Linux, macOS
        ".spotlight-v100", ".fseventsd", ".temporaryitems", ".documentrevisions-v100", "__macosx",
        ".appledouble", ".appledb", ".appledesktop",
        ".dtrash", ".picasaoriginals", ".bridgecache", ".photoprism",  # digiKam, Picasa, Bridge, PhotoPrism
        "files_trashbin", "files_versions", ".stversions", ".dropbox.cache",  # Nextcloud, Syncthing, Dropbox
        "_delta_log", ".agewatch",  # our own
    }
)  # fmt: skip
_FOLDER_FORMS = re.compile(
    r"\.trash-\d+"  # of a user, on a disk that is not his home's (freedesktop.org's trash specification)
    r"|@gmt-\d{4}\.\d\d\.\d\d-\d\d\.\d\d\.\d\d"  # a shadow copy (Samba's vfs_shadow_copy2)
    r"|.+\.lrdata"  # Lightroom's previews
)
_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", ".picasa.ini"})


class Litter:
    """Tells what is passed over in an archive; `globs` add to it, in the form of .gitignore.

    Raises UsageError where one of them is malformed.
    """

    def __init__(self, globs: Sequence[str] = ()) -> None:
        try:
            self._excluded = GitIgnoreSpec.from_lines(globs) if globs else None
        except ValueError as error:
            raise UsageError(f"--exclude can't be used: {error}.") from error

    def is_folder(self, name: str, path: str) -> bool:
        """Tell it of a folder by its name and its path in the archive."""
        lower = name.lower()
        return lower in _FOLDERS or bool(_FOLDER_FORMS.fullmatch(lower)) or self._is_excluded(f"{path}/")

    def is_file(self, name: str, path: str) -> bool:
        """Tell it of a file by its name and its path in the archive."""
        return name.lower() in _FILES or name.startswith("._") or self._is_excluded(path)

    def covers(self, path: str) -> bool:
        """Tell of a path in the archive whether it is passed over, by its own name or a folder that it lies in."""
        folder, _, name = path.rpartition("/")
        return self.is_file(name, path) or self.covers_folder(folder)

    def covers_folder(self, path: str) -> bool:
        """Tell it of a folder by its path, of which the archive's own is empty, or of one that it lies in."""
        names = path.split("/") if path else []
        above = ("/".join(names[: depth + 1]) for depth in range(len(names)))
        return any(map(self.is_folder, names, above))

    def _is_excluded(self, path: str) -> bool:
        return self._excluded is not None and self._excluded.match_file(path)
