"""Alerts reach each way at least once, and tell each night once; with a real server, and real commands."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from agewatch.nights import alerts
from agewatch.nights.alerts import Alert, AlertError
from agewatch.nights.ledger import Ledger, Outcome
from agewatch.nights.night import held

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class Hook(HTTPServer):
    """A webhook that answers with the codes that it is told, then with 200, and keeps what it took."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.asked: list[int] = []
        self.taken: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/secret"


class _Answer(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        code = self.server.codes.pop(0) if self.server.codes else 200
        self.server.asked.append(code)
        if code == 200:
            self.server.taken.append(body)
        self.send_response(code)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Hook()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.chdir(tmp_path)
    configure()
    return Ledger(home)


def configure(**alert: Any) -> None:
    deployment = {
        "name": "town", "entrypoint": "flows.night.night", "parameters": {"archive_folder": "town"},
        "schedules": [{"interval": 86400, "anchor_date": NOW.isoformat()}],
    }  # fmt: skip
    Path("prefect.yaml").write_text(
        yaml.safe_dump({"definitions": {"agewatch": {"alert": alert}}, "deployments": [deployment]})
    )


def run(ledger: Ledger, due: datetime, outcome: Outcome = "done", reason: str | None = None, **found: Any) -> None:
    with held(ledger, "town", "night", due) as night:
        night.outcome, night.reason, night.figures = outcome, reason, found


def script(text: str, name: str = "tell") -> str:
    file = Path(name).resolve()
    file.write_text(f"#!{sys.executable}\nimport sys, time\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def alert(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "agewatch", "status", "--alert", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_each_way_is_told_of_each_night_once_and_a_broken_one_again(ledger: Ledger, hook: Hook) -> None:
    keep = script("open('told', 'a').write(sys.stdin.read() + '\\n'); print('noise')")
    configure(command=[keep, "two words"], webhook=hook.url)
    assert alert() == (0, "Nothing is new since the last alert.\n", "")
    counts = {"found": 10, "scored": 10, "refused": {"truncated": 9}, "refused_now": 9}
    drift = {"verdict": "drift", "cause": "people", "since": "2026-03-01", "headline": "4 years older."}
    drift |= {"why": "Label some."}
    run(ledger, NOW + 1 * DAY, "refused", "9 of the 10 files read were refused.", **counts, **drift)
    run(ledger, NOW + 2 * DAY, "failed", "It failed.", verdict="drift", cause="people")
    run(ledger, NOW + 3 * DAY)
    hook.codes = [404]  # an answer that does not change: no second try
    code, out, err = alert()
    assert code == 1
    assert out == "Sent by command: 2 nights need a look: town; drift in town\n"
    assert err == (
        f"agewatch: The alert's webhook at 127.0.0.1:{hook.server_port} answered 404. It is sent again the next time.\n"
    )
    hook.codes = [503]  # one that may pass
    assert alert() == (0, "Sent by webhook: 2 nights need a look: town; drift in town\n", "")
    assert hook.asked == [404, 503, 200]
    assert alert()[1] == "Nothing is new since the last alert.\n"
    [told] = map(json.loads, Path("told").read_text().splitlines())
    assert [told] == hook.taken
    assert [(item["what"], item["archive"], item["counts"]) for item in told["items"]] == [
        ("refused", "town", counts),
        ("drift", "town", counts),
        ("failed", "town", {}),
    ]
    assert (told["items"][1]["cause"], told["items"][1]["since"]) == ("people", "2026-03-01")
    assert told["items"][0]["due"] == (NOW + DAY).isoformat()
    known = "drift, cause people. 4 years older. Label some."
    for said in ("refused. 9 of the 10 files read were refused.", known, "failed. It failed."):
        assert said in told["text"]


def test_a_way_that_is_broken_from_its_first_day_is_told_all(ledger: Ledger, hook: Hook) -> None:
    configure(command=[script("sys.exit(3)", "bad")], webhook=hook.url)
    run(ledger, NOW + DAY, "failed", "It failed.")
    code, out, err = alert()
    assert (code, out.startswith("Sent by webhook")) == (1, True)
    assert "bad ended with 3. It is sent again" in err
    run(ledger, NOW + 2 * DAY, "failed", "Again.")
    configure(command=[script("open('told', 'a').write(sys.stdin.read())", "good")], webhook=hook.url)
    assert alert()[0] == 0
    assert [len(told["items"]) for told in hook.taken] == [1, 1]
    assert len(json.loads(Path("told").read_text())["items"]) == 2


def test_a_way_that_is_new_begins_where_the_others_are(ledger: Ledger, hook: Hook) -> None:
    run(ledger, NOW + DAY, "failed", "It failed.")
    code, out, _ = alert()
    assert code == 0
    assert "failed. It failed." in out
    assert "names no way for alerts" in out
    configure(webhook=hook.url)
    assert alert()[1] == "Nothing is new since the last alert.\n"
    run(ledger, NOW + 2 * DAY, "gone", "Gone.")
    code, out, _ = alert("--json")
    assert code == 0
    assert [item["what"] for item in json.loads(out)["sent"]["webhook"]["items"]] == ["gone"]
    assert hook.taken == [json.loads(out)["sent"]["webhook"]]


def test_a_night_that_was_made_up_meanwhile_is_told_with_that(ledger: Ledger) -> None:
    ledger.miss("town", "night", [NOW + DAY, NOW + 2 * DAY], "It was due and never began.")
    run(ledger, NOW + DAY)
    run(ledger, NOW + 2 * DAY, "failed", "A disk is full.")
    [made_up, failed] = alerts.compose(ledger, ledger.news()).items
    assert (made_up.what, made_up.since_then) == ("missed", "done")
    assert (failed.what, failed.reason, failed.since_then) == ("failed", "A disk is full.", None)
    text = alerts.compose(ledger, ledger.news()).text
    assert "It was due and never began. It was made up since." in text


def test_what_a_person_or_an_overlap_ended_is_no_alert(ledger: Ledger) -> None:
    outcomes: list[Outcome] = ["skipped", "covered", "cancelled", "stopped", "done"]
    for number, outcome in enumerate(outcomes):
        run(ledger, NOW + number * DAY, outcome)
    assert ledger.news() == []


def test_a_command_that_hangs_is_ended_with_what_it_started(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(alerts, "COMMAND_SECONDS", 1.0)
    hang = script("import os, subprocess; subprocess.Popen(['sleep', '600']); time.sleep(600)")
    message = Alert("A subject", "A text", ())
    with pytest.raises(AlertError, match="had not ended after 1 s"):
        alerts.by_command([hang], message)
    with pytest.raises(AlertError, match="can't be started: No such file or directory"):
        alerts.by_command([str(tmp_path / "nothing")], message)
    alerts.by_command(["true"], Alert("A subject", "long " * 100_000, ()))  # it does not read what it gets


def test_a_webhook_that_nobody_answers_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "MOST_WAIT_SECONDS", 0.01)
    with pytest.raises(AlertError) as caught:
        alerts.by_webhook("http://user:word@127.0.0.1:9/hooks/secret", Alert("A subject", "A text", ()))
    assert str(caught.value) == "The alert's webhook at 127.0.0.1:9 was not reached (ConnectError)."


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"command": "tell me"}, "command: Input should be a valid list"),
        ({"webhook": "ftp://secret"}, "webhook: String should match"),
        ({"block": "Slack"}, "block: String should match"),
        ({"email": "x"}, "email: Extra inputs"),
    ],
)
def test_a_way_that_is_none_is_a_sentence(ledger: Ledger, said: dict[str, Any], sentence: str) -> None:
    configure(**said)
    code, out, err = alert()
    assert (code, out) == (2, "")
    assert sentence in err
    assert "secret" not in err


def test_a_block_of_prefects_takes_an_alert(ledger: Ledger, hook: Hook) -> None:
    import flows.alerts

    # isort: split

    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.testing.utilities import prefect_test_harness

    message = Alert("A subject", "A text", ())
    with pytest.raises(AlertError, match="while agewatch is not up"):
        flows.alerts.by_block("custom-webhook/tell", message)
    with prefect_test_harness(server_startup_timeout=180):
        said = {"text": "{{subject}}: {{body}}"}
        CustomWebhookNotificationBlock(name="tell", url=hook.url, json_data=said).save("tell")
        flows.alerts.by_block("custom-webhook/tell", message)
        assert hook.taken == [{"text": "A subject: A text"}]
        hook.codes = [500]
        for name in ("custom-webhook/tell", "custom-webhook/other"):
            with pytest.raises(AlertError, match=f"The alert's block {name} did not take it"):
                flows.alerts.by_block(name, message)
