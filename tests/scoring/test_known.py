"""What the table knows of files, in columns, against a dictionary of objects."""

from collections import Counter
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from agewatch.scoring.content import hash_key
from agewatch.scoring.known import NUMBERS, STATE, STATUSES, Known, path_keys, summarise
from agewatch.scoring.merging import due
from agewatch.scoring.predictions import SCHEMA
from agewatch.sources.ahead import NONE

PATHS = [f"folder {number % 3}/{number}.jpg" for number in range(8)]
NUMBER = st.none() | st.integers(0, 2**63 - 1)
FILE = st.tuples(
    st.integers(1, 3) | st.sampled_from(["no_face", "denied", "a status to come"]),
    st.tuples(NUMBER, NUMBER, NUMBER), st.none() | st.integers(0, 2**256 - 1), st.booleans(),
)  # fmt: skip
COMMITS = st.lists(st.dictionaries(st.sampled_from(PATHS), FILE, min_size=1), max_size=6)


def rows_of(path: str, file: Any) -> list[dict[str, Any]]:
    faces, numbers, content, is_gone = file
    told = dict(zip(NUMBERS, numbers, strict=True)) | {"path": path, "gone_at": 0 if is_gone else None}
    told |= {"content_hash": None if content is None else f"{content:064x}"}
    return [told | {"status": "ok"}] * faces if isinstance(faces, int) else [told | {"status": faces}]


def batches(files: dict[str, Any], rows: int) -> list[pa.RecordBatch]:
    """The files' rows, cut without regard to which belong together."""
    found = [row for path, file in files.items() for row in rows_of(path, file)]
    schema = pa.schema([SCHEMA.field(name) for name in STATE])
    return pa.Table.from_pylist(found, schema).to_batches(max_chunksize=rows)


@given(COMMITS, st.integers(1, 5))
@settings(deadline=None)
def test_files_are_known_as_they_were_written_last(commits: list[dict[str, Any]], rows: int) -> None:
    known, held = Known(batches(commits[0], rows) if commits else ()), dict[str, Any]()
    for number, files in enumerate(commits):
        held |= files
        if number:
            known.update(*summarise(batches(files, rows)))
    states, is_known = known.find(path_keys(PATHS))
    assert is_known.tolist() == [path in held for path in PATHS]
    assert len(known) == len(held)
    for path, state in zip(PATHS, states, strict=True):
        if path in held:
            faces, numbers, content, is_gone = held[path]
            assert [None if state[name] == NONE else state[name] for name in NUMBERS] == list(numbers)
            assert (state["content"] if state["is_read"] else None) == (content and hash_key(f"{content:064x}"))
            assert (state["faces"], bool(state["is_gone"])) == (faces if isinstance(faces, int) else 0, is_gone)
            assert STATUSES[state["status"]] == (faces if isinstance(faces, str) else "ok")
    found = [path for path in PATHS[:5] if path in held]
    known.note(path_keys(PATHS[:5]))
    kinds = [held[path][0] for path in found]
    counts = Counter(kind if isinstance(kind, str) else "ok" for kind in kinds)
    assert known.tally() == (counts, sum(kind for kind in kinds if isinstance(kind, int)))


def test_each_row_is_merged_a_few_times_however_many_commits_there_are() -> None:
    below = [due(version) for version in range(1, 10_001)]
    assert (len([each for each in below if each]), below[98], due(0)) == (100, 0, 0)
    assert len([each for each in below if each > due(100)]) == 10
    assert due(1_000) == due(11_000) > due(1_100) == due(100)
    assert due(10**9) == due(10**5)
