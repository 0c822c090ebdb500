"""The client of a server, against a small server that is overloaded, breaks off, and refuses."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from scripted import ANSWER, Script

from agewatch.errors import ImageError, ServeError, UsageError
from agewatch.remote import AsyncClient, Client, Server, Window


def error(status: int, code: str) -> tuple[int, object]:
    return status, {"error": {"code": code, "message": f"It is {code}."}}


def test_overload_and_lost_connections_are_asked_again_and_refusals_never(script: tuple[Script, Server]) -> None:
    plan, server = script
    plan.answers = {
        b"busy": [error(429, "overloaded"), error(503, "unavailable"), (0, None), (200, ANSWER)],
        b"torn": [error(422, "truncated")],
        b"huge": [(413, "no JSON of ours")],
        b"text": [error(415, "unsupported")],
        b"kills": [error(500, "failed")],
        b"strange": [error(400, "usage")],
        b"no agewatch": [(200, {"hello": "there"})],
    }
    with Client(server) as client:
        assert client.ask(b"busy") == ANSWER
        assert client.describe() == (ANSWER["model"], ANSWER["engine"])
        refused = {b"torn": "truncated", b"huge": "too_large", b"text": "unsupported", b"kills": "decoder_failed"}
        for picture, code in refused.items():
            with pytest.raises(ImageError) as caught:
                client.ask(picture)
            assert caught.value.code == code
        for picture in (b"strange", b"no agewatch"):
            with pytest.raises(ServeError, match="does not answer as an agewatch server does"):
                client.ask(picture)
    plan.asked.pop(next(picture for picture in plan.asked if picture.startswith(b"\x89PNG")))
    assert plan.asked == {b"busy": 4, b"torn": 1, b"huge": 1, b"text": 1, b"kills": 3, b"strange": 1, b"no agewatch": 1}


def test_the_number_at_once_follows_what_the_server_takes(script: tuple[Script, Server]) -> None:
    plan, server = script
    plan.room = 6
    pictures = [str(number).encode() for number in range(300)]

    async def ask_all() -> float:
        async with AsyncClient(server) as client, anyio.create_task_group() as tasks:
            for picture in pictures:
                tasks.start_soon(client.ask, picture)
        return client.window.size

    size = anyio.run(ask_all)
    assert set(plan.asked) == set(pictures)
    assert max(plan.asked.values()) == 1, "an answered picture was asked again"
    assert 4 <= plan.most <= 12, "neither idle nor a flood"
    assert plan.overloaded < len(pictures) / 4
    assert size < 24, "the window grew though it was not filled"


def test_a_window_halves_once_for_all_that_was_sent_before() -> None:
    async def cut() -> list[float]:
        window, sizes = Window(size=16), []
        async with window.place() as first, window.place() as second:
            for number in (first, second):
                window.shrink(number)
                sizes.append(window.size)
        async with window.place() as third:
            window.shrink(third)
        return [*sizes, window.size]

    assert anyio.run(cut) == [8, 8, 4]


def test_many_threads_share_one_client(script: tuple[Script, Server]) -> None:
    plan, server = script
    with Client(server, most=3) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(client.ask, [bytes([number]) for number in range(100)]))
    assert answers == [ANSWER] * 100
    assert plan.most <= 3


def test_a_server_that_is_away_or_has_another_token_ends_in_a_sentence_without_the_token(
    script: tuple[Script, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, server = script
    key_file = tmp_path / "key_file.json"
    with Client(server) as client:
        plan.token = "fresh"
        with pytest.raises(ServeError, match=r"The token is wrong\.$"):
            client.ask(b"a")
        key_file.write_text('{"inference": {"key": "fresh"}}')  # as a server that was started again does
        assert client.ask(b"b") == ANSWER
    nobody = Server("http://127.0.0.1:9", key_file)
    with pytest.raises(ServeError, match="did not answer for 0 seconds: All connection"):
        with_patience(nobody, 0.5)
    monkeypatch.setenv("AGEWATCH_TOKEN", "fresh")
    with Client(Server(server.url)) as client:
        assert client.ask(b"d") == ANSWER
    assert "fresh" not in repr(Server(server.url, key_file))
    monkeypatch.delenv("AGEWATCH_TOKEN")
    with pytest.raises(UsageError, match="token is missing"), Client(Server(server.url)):
        pass


def with_patience(server: Server, seconds: float) -> None:
    with Client(server, patience=seconds) as client:
        client.ask(b"picture")


@pytest.mark.parametrize("url", ["http://example.org/", "http://10.0.0.1:8080"])
def test_no_face_goes_to_another_machine_in_the_clear(url: str) -> None:
    with pytest.raises(UsageError, match="in the clear"):
        Server(url)
    Server(url.replace("http:", "https:"))
    with pytest.raises(UsageError, match="address"):
        Server("localhost:8080")
