"""Is all as it should be? Each check stands alone, so that one that fails hides no other."""

from collections.abc import Mapping
from types import MappingProxyType

from agewatch.errors import AgewatchError
from agewatch.settings import Settings
from agewatch.upkeep import condition, machine
from agewatch.upkeep.finding import Check, Finding

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "packages": machine.packages,
        "java": machine.java,
        "ports": machine.ports,
        "telemetry": machine.telemetry,
        "clock": machine.clock,
        "disk": condition.disk,
        "locks": condition.locks,
        "permissions": condition.permissions,
        "table": condition.table,
        "model": condition.model,
        "schedule": condition.nights,
        "automations": machine.automations,
    }
)
"""All checks by the names that a person sees, in the order in which they are told."""


def examine(settings: Settings, checks: Mapping[str, Check] = CHECKS) -> list[Finding]:
    """What each check found; one that raises is a finding that something is wrong."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(settings)
        except AgewatchError as error:
            found.append(Finding(name, "wrong", str(error)))
        except Exception as error:  # whatever it is, the other checks go on
            found.append(Finding(name, "wrong", f"This could not be looked at: {error!r}."))
    return found
