"""Thin Prefect flows over core functions: `score.py`, `drift.py`, `retrain.py`.

Importing this package, which must come before prefect, turns telemetry off in this process and its children, and
keeps private what they write.
"""

import os

from agewatch.files import keep_private

os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
# A script run without a server starts a temporary one; Prefect's own 20 s are too few on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
keep_private()
