"""What can go wrong, as one tree.

    AgewatchError                 exit code 1: the work failed
    ├── UsageError                exit code 2: the request itself is wrong
    ├── ImageError                one picture is refused; becomes that file's row
    ├── ModelError                a model file is missing, damaged or of another revision
    ├── TableError                the predictions table can't be read or written
    ├── LabelError                the labelled pictures can't be trained on or evaluated
    ├── HeldBackError             a model may not be promoted: it did not pass against the current one
    ├── GoneError                 exit code 6: an archive that was there is missing
    └── ServeError                TorchServe did not come up or did not answer

The library raises these; only the command line turns them into sentences and exit codes.
"""

from typing import Literal, get_args

RefusalCode = Literal[
    "unreadable", "truncated", "unsupported", "too_large", "empty", "denied", "decoder_failed", "vanished"
]
REFUSAL_CODES: tuple[str, ...] = get_args(RefusalCode)


class AgewatchError(Exception):
    """Base of all errors that agewatch raises on purpose. Its text is one sentence for a person."""

    code = "failed"
    exit_code = 1


class UsageError(AgewatchError):
    """The request itself is wrong: a folder that does not exist, options that contradict."""

    code = "usage"
    exit_code = 2


class ImageError(AgewatchError):
    """One picture is refused. `code` is the row's status, the text is the row's error."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code: RefusalCode = code

    def __reduce__(self) -> tuple[type["ImageError"], tuple[RefusalCode, str]]:
        # Travels between processes; the default would lose `code`.
        return (ImageError, (self.code, str(self)))


class ModelError(AgewatchError):
    """A model file is missing, damaged, or needs another revision of this code."""

    code = "model"


class TableError(AgewatchError):
    """The predictions table can't be read or written."""

    code = "table"


class LabelError(AgewatchError):
    """The labelled pictures can't be trained on or evaluated."""

    code = "labels"


class HeldBackError(AgewatchError):
    """A model may not be promoted: it did not pass against the current one."""

    code = "held_back"


class GoneError(AgewatchError):
    """An archive that was there is missing: an unmounted disk, a folder that moved."""

    code = "gone"
    exit_code = 6


class ServeError(AgewatchError):
    """TorchServe did not come up or did not answer."""

    code = "serve"
