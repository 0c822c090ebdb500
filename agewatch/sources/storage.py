"""Object storage by URL: `s3://BUCKET/PREFIX`, `gs://`, `az://`.

Through obstore, as one of its requests costs less than a tenth of fsspec's CPU time and it needs no other package
(benchmarks/object_storage.py). Credentials come from the environment, a machine's role, or a profile of AWS; they are
handed to libraries and never told.
"""

import configparser
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.store import AzureStore, GCSStore, S3Store

from agewatch.errors import UsageError

_URL = re.compile(r"(s3|gs|az):/+([^/]*)/*(.*)", re.DOTALL)
_RETRIES: dict[str, Any] = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=40),  # less than the pool allows a picture
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=10)}
_KEYS = {
    "aws_access_key_id": "aws_access_key_id",
    "aws_secret_access_key": "aws_secret_access_key",
    "aws_session_token": "aws_session_token",
    "region": "aws_region",
    "endpoint_url": "aws_endpoint",
}
"""What a profile of AWS calls what the libraries need, and what these call it."""


def url_of(place: Path | str) -> str | None:
    """The URL of a place in object storage, None of any other; pathlib makes one slash of its two.

    Raises UsageError where it holds a name or password.
    """
    found = _URL.fullmatch(os.fspath(place))
    if found is None:
        return None
    scheme, bucket, prefix = found.groups()
    if not re.fullmatch(r"[\w.-]+", bucket):
        raise UsageError(
            f"A URL of object storage is {scheme}://BUCKET/PREFIX; credentials come from the environment or a profile."
        )
    return f"{scheme}://{bucket}/{prefix}".rstrip("/")


def open_store(url: str) -> Any:
    """A client for what lies below a URL; it connects when it is first used, and tries again for some 40 seconds."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    config: Any = aws_options() if scheme == "s3" else {}
    client = _CLIENT | ({"allow_http": True} if config.pop("aws_allow_http", None) else {})
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    return kind(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRIES)


def aws_options() -> dict[str, str]:
    """What the libraries don't all find by themselves: a profile's keys, region, and an endpoint, also of plain HTTP.

    A role that must be assumed, or a single sign-on, is for `aws configure export-credentials --format env`.
    """
    named = os.environ.get("AWS_PROFILE")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    options = {"aws_region": region}  # said, as delta-rs asks the network for it else
    options |= {} if "AWS_ACCESS_KEY_ID" in os.environ and named is None else _of_profile(named or "default")
    if told := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options["aws_endpoint"] = told
    if options.get("aws_endpoint", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options


def _of_profile(profile: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(os.environ.get(variable) or f"~/.aws/{name}").expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise UsageError(f"AWS's file of {name} can't be read ({type(error).__name__}).") from None
        if parser.has_section(section):
            found |= {_KEYS[key]: value for key, value in parser.items(section) if key in _KEYS}
    return found
