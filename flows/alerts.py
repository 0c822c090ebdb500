"""An alert by a notification block of Prefect's, such as `slack-webhook/NAME`."""

import flows  # noqa: F401  before prefect: it turns telemetry off

# isort: split

from typing import Any

from prefect.blocks.core import Block

from agewatch.nights.alerts import Alert, AlertError


def by_block(name: str, alert: Alert) -> None:
    """Send an alert by a block, which is looked up on Prefect's server. Raises AlertError."""
    try:
        block: Any = Block.load(name)
        with block.raise_on_failure():
            block.notify(body=alert.text, subject=alert.subject)
    except Exception as error:  # a server, a block, or a service of any kind: its text may hold the block's secrets
        raise AlertError(f"The alert's block {name} did not take it ({type(error).__name__}).") from error
