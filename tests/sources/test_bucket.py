"""Object storage, by a real S3 server on loopback."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from buckets import Buckets, buckets

from agewatch.errors import AgewatchError, ImageError, UsageError
from agewatch.sources import door
from agewatch.sources.bucket import AHEAD, Bucket
from agewatch.sources.source import FileRef, Sieve
from agewatch.sources.storage import aws_options, url_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    with buckets(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def found(server: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


FILES = ("a.jpg", "a-b/x.jpg", "a/x.jpg", "per%20cent #1?.jpg", "grün.jpg", "back\\slash.jpg", "none")


def test_keys_are_paths_and_a_prefix_is_a_folder(server: Buckets, tmp_path: Path) -> None:
    url = server.make("keys")
    for path in (*FILES, "notes.txt", "@eaDir/a.jpg", "deep/inner.zip"):
        server.put(f"{url}/my photos", path, path.encode())
    server.put(url, "my photos 2/other.jpg", b"x")
    server.put(f"{url}/my photos", "empty.jpg", b"")
    server.put(f"{url}/my photos", "a folder's mark", b"")
    source = door.at(f"{url}/my photos/")
    assert (source.root, source.name) == ("s3://keys/my photos", "my photos")
    listing = door.find(source, ["none"])
    wanted = sorted({*FILES, "empty.jpg"} - {"none"})
    assert [file.path for file in listing.files] == [path.replace("\\", "\\\\") for path in wanted]
    assert (listing.ignored, listing.nested) == ({".zip": 1, ".txt": 1}, ["deep/inner.zip"])
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.read(file) for file in listing.files] == [
        (b"" if path == "empty.jpg" else path.encode(), file) for path, file in zip(wanted, listing.files, strict=True)
    ]


def test_an_object_that_is_replaced_within_a_second_by_one_of_its_size_is_another(server: Buckets) -> None:
    url = server.make("replaced")
    seen = set()
    for data in (b"one", b"two", b"six"):
        server.put(url, "a.jpg", data)
        [file] = door.find(door.at(url)).files
        seen.add(file)
    assert len(seen) == 3


def test_files_are_read_ahead_and_given_out_in_order(server: Buckets) -> None:
    url = server.make("ahead")
    for number in range(3 * AHEAD):
        server.put(url, f"{number:02}.jpg", str(number).encode())
    source = door.at(url)
    files = door.find(source).files
    server.reads()
    reads = source.reads(files)
    assert [read()[0] for _, read in reads] == [str(number).encode() for number in range(3 * AHEAD)]
    assert server.reads() == 3 * AHEAD
    _, read = next(source.reads(files))
    read()
    assert server.reads() <= AHEAD + 1


def test_storage_that_refuses_one_request_in_three_is_asked_again(server: Buckets) -> None:
    url = server.make("busy")
    for number in range(20):
        server.put(url, f"{number:02}.jpg", bytes([number]))
    server.refuse(3)
    try:
        source = door.at(url)
        assert [read()[0] for _, read in source.reads(door.find(source).files)] == [bytes([n]) for n in range(20)]
    finally:
        server.refuse(0)


def test_a_key_that_can_not_be_told_costs_only_its_folder(server: Buckets) -> None:
    url = server.make("odd")
    for path in ("a/1.jpg", "b/deep/2.jpg", "b/3.jpg", "c/4.jpg"):
        server.put(url, path, b"x")
    httpx.put(f"{server.url}/odd/b/%2e%2e/5.jpg", content=b"x", trust_env=False)
    httpx.put(f"{server.url}/odd/b//5.jpg", content=b"x", trust_env=False)
    files = list(door.at(url).walk(sieve := Sieve()))
    assert sorted(file.path for file in files) == ["a/1.jpg", "c/4.jpg"]
    assert sieve.unlisted == ["b"]
    assert sieve.may_hold("b/3.jpg")


def test_what_is_not_there_or_not_allowed_is_said_in_a_sentence(
    server: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.make("empty")
    for place in (url, f"{url}/deep", "s3://no-such-bucket/x"):
        with pytest.raises(UsageError, match="There is nothing at"):
            door.find(door.at(place))
    with pytest.raises(ImageError, match="disappeared") as gone:
        door.at(url).read(FileRef("gone.jpg"))
    assert gone.value.code == "vanished"
    monkeypatch.setattr("agewatch.sources.storage._RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AgewatchError, match=r"s3://empty can't be listed: it does not answer\.$"):
        door.find(door.at(url))


def test_credentials_stand_in_no_url_and_travel_in_no_source(server: Buckets) -> None:
    for url in ("s3://key:secret@bucket/x", "s3://key@bucket", "s3://"):
        with pytest.raises(UsageError) as refused:
            door.at(url)
        assert "secret" not in str(refused.value)
    source = Bucket("s3://empty")
    with pytest.raises(UsageError):
        source.require_there()
    assert b"never-to-be-seen" not in pickle.dumps(source)
    assert url_of(Path("s3://bucket/deep/x")) == "s3://bucket/deep/x"
    assert url_of("folder/s3:/x") is None


def test_a_profile_of_aws_gives_keys_region_and_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert aws_options() == {"aws_region": "us-east-1"}
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-north-1\nendpoint_url = http://minio:9000\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = a%b\naws_secret_access_key = c\n[default]\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert aws_options() == {
        "aws_access_key_id": "a%b", "aws_secret_access_key": "c", "aws_region": "eu-north-1",
        "aws_endpoint": "http://minio:9000", "aws_allow_http": "true",
    }  # fmt: skip
