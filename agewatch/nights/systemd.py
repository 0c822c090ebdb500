"""Units of systemd: one that keeps `agewatch up` running, and a timer that sends alerts even where that is dead."""

import os
import pwd
import shlex
import sys
from pathlib import Path

from agewatch.settings import Settings

_UNITS = """# agewatch-up.service
[Unit]
Description=agewatch: score archives every night, and watch for drift
After=network.target

[Service]
{common}
ExecStart={command} up{options}
Restart=always
RestartSec=5
TimeoutStopSec=120
KillMode=mixed

[Install]
WantedBy=multi-user.target

# agewatch-alert.service
[Unit]
Description=agewatch: tell of nights that failed or are missing

[Service]
Type=oneshot
{common}
ExecStart={command} status --alert

# agewatch-alert.timer
[Unit]
Description=agewatch: look every quarter of an hour

[Timer]
OnCalendar=*:0/15
Persistent=true

[Install]
WantedBy=timers.target
"""
_COMMON = """User={user}
WorkingDirectory={here}
Environment=AGEWATCH_HOME={home} AGEWATCH_MODEL_STORE={store}
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={written}
ProtectKernelTunables=true
ProtectKernelModules=true
ProtectControlGroups=true
RestrictSUIDSGID=true
RestrictRealtime=true
LockPersonality=true
UMask=0077"""


def units(*, serve: bool, port: int) -> str:
    """The three units, for the folder in which this is called and the user who calls it.

    Each begins with its name as a comment, for /etc/systemd/system. `ProtectSystem` leaves only what is named writable.
    """
    settings, here = Settings(), Path.cwd()
    home, store = settings.home.resolve(), settings.model_store.resolve()
    written = [f"-{path}" for path in (here, home, store)]  # a minus: one that is not there yet is no error
    common = _COMMON.format(
        user=pwd.getpwuid(os.getuid()).pw_name, here=here, home=_quoted(home), store=_quoted(store),
        written=" ".join(map(_quoted, written)),
    )  # fmt: skip
    options = f"{' --serve' if serve else ''}{f' --port {port}' if port != 4200 else ''}"
    command = f"{shlex.quote(sys.executable)} -m agewatch"
    return _UNITS.format(common=common, command=command, options=options)


def _quoted(path: Path | str) -> str:
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text
