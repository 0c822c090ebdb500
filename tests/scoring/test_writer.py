"""The table's writers against a dictionary: whatever they write, in any order, one after the other or outdated."""

import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from rows import row

from agewatch.scoring import predictions
from agewatch.scoring.known import path_keys
from agewatch.scoring.predictions import Key
from agewatch.scoring.writer import Writer

PATHS = ("a.jpg", "it's.jpg", r"b\\s.jpg", "c d.jpg")
State = tuple[int, int, int]
"""What a file's rows say of it: mtime_ns, the number of its content, faces."""


@dataclass
class Run:
    """A writer, what it believes the table holds, and whether it found that others write too."""

    writer: Writer
    model: str
    knows: dict[str, State]
    commits: int
    others_wrote: bool = field(default=False)


class Table(RuleBasedStateMachine):
    """`held` is what the table must hold: state and age by model and path."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.place = Path(self.folder.name)
        self.held: dict[tuple[str, str], tuple[State, float]] = {}
        self.commits = 0
        self.arrived: dict[int, datetime] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(target=runs, model=st.sampled_from(["m-1@0", "m-2@0"]))
    def open(self, model: str) -> Run:
        writer = Writer(self.place / "table", Key("a", model, "detect"), root=self.place)
        knows = {path: state for (of, path), (state, _) in self.held.items() if of == model}
        states, is_known = writer.known.find(path_keys(PATHS))
        assert is_known.tolist() == [path in knows for path in PATHS]
        faces = [knows[path][2] for path in PATHS if path in knows]
        assert (len(writer.known), states["faces"][is_known].tolist()) == (len(knows), faces)
        return Run(writer, model, knows, self.commits)

    @rule(
        run=runs,
        files=st.dictionaries(
            st.sampled_from(PATHS), st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 2)), min_size=1
        ),
        age=st.integers(0, 99),
    )
    def write(self, run: Run, files: dict[str, State], age: float) -> None:
        rows: list[dict[str, Any]] = []
        for path, (mtime, content, faces) in files.items():
            known = {"mtime_ns": mtime, "content_hash": f"{content:064x}"[::-1], "model": run.model}
            rows += [row(path, face=face, age=age, **known) for face in range(faces)]
            if not faces:
                rows.append(row(path, face=None, age=None, **known))
        run.others_wrote |= run.commits != self.commits
        written = dict(files)
        if run.others_wrote:
            for path, state in files.items():
                theirs = self.held.get((run.model, path), (None,))[0]
                if theirs is not None and theirs != run.knows.get(path) and theirs[0] == state[0]:
                    del written[path]  # another run has scored the file in this state meanwhile
                if theirs is not None:
                    run.knows[path] = theirs
        assert run.writer.write(rows) == sum(max(1, state[2]) for state in written.values())
        if written:
            self.commits += 1
            run.commits = self.commits
        for path, state in written.items():
            run.knows[path] = state
            self.held[run.model, path] = (state, age)

    @invariant()
    def the_table_holds_what_was_written(self) -> None:
        if not (self.place / "table").exists():
            return
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for each in predictions.read(self.place / "table").to_pylist():
            found.setdefault((each["model"], each["path"]), []).append(each)
        assert found.keys() == self.held.keys()
        for key, ((mtime, content, faces), age) in self.held.items():
            rows = found[key]
            assert sorted(each["face"] for each in rows if each["face"] is not None) == list(range(faces))
            assert len(rows) == max(1, faces)
            assert {(each["mtime_ns"], int(each["content_hash"][::-1], 16)) for each in rows} == {(mtime, content)}
            assert {each["age"] for each in rows} == ({age} if faces else {None})
            assert len({each["arrived_at"] for each in rows}) == 1

    @invariant()
    def content_arrives_once(self) -> None:
        if not self.held:
            return
        now: dict[int, set[datetime]] = {}
        for each in predictions.read(self.place / "table").to_pylist():
            now.setdefault(int(each["content_hash"][::-1], 16), set()).add(each["arrived_at"])
        for content, times in now.items():
            first = self.arrived.get(content)
            assert first is None or min(times) <= first, "a content that is there arrived again"
        self.arrived = {content: min(times) for content, times in now.items()}


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
