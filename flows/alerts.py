"""An alert by a notification block of Prefect's, such as `slack-webhook/NAME`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

from typing import Any

from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL, temporary_settings

from agewatch.nights.alerts import Alert, AlertError
from agewatch.nights.status import shown_at
from agewatch.settings import Settings


def by_block(name: str, alert: Alert) -> None:
    """Send an alert by a block of the server that `agewatch up` runs, or that PREFECT_API_URL names.

    Raises AlertError.
    """
    api = shown_at(Settings().home, "api") or PREFECT_API_URL.value()
    if api is None:
        raise AlertError(f"The alert's block {name} is not known while agewatch is not up and PREFECT_API_URL not set.")
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            block: Any = Block.load(name)
            with block.raise_on_failure():
                block.notify(body=alert.text, subject=alert.subject)
    except Exception as error:  # a server, a block, or a service of any kind: its text may hold the block's secrets
        raise AlertError(f"The alert's block {name} did not take it ({type(error).__name__}).") from error
