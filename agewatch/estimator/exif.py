"""What EXIF says of a picture, as programs write it: when it was taken, and by which camera."""

import re
from datetime import UTC, datetime, timedelta, timezone

_DATE = re.compile(  # as the standard has it, and ISO 8601, fractions, an offset of its own
    r"(\d{4})[:./-](\d\d)[:./-](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d+))? ?([+-]\d\d:?\d\d|Z)?"
)
_OFFSET = re.compile(r"(?:([+-])(\d\d)(?::?(\d\d))?|Z)")
_PADDING = "\0 "


def captured_at(date: object, offset: object) -> datetime | None:
    """DateTimeOriginal with its offset, as UTC, which is assumed where none is given; None where it is no date."""
    told = _DATE.fullmatch(str(date or "").strip(_PADDING))
    if told is None:
        return None
    year, month, day, hour, minute, second, fraction, own_offset = told.groups()
    zone = _zone(_OFFSET.fullmatch(str(offset or own_offset or "").strip(_PADDING)))
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    days, time = (int(year), int(month), int(day)), (int(hour), int(minute), int(second), microsecond)
    try:
        return datetime(*days, *time, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):  # a month 13; the year 1 or 9999 moved out of range by its offset
        return None


def camera(make: object, model: object) -> str | None:
    """Make and Model in one line, the make once; None where neither says anything."""
    maker, name = (" ".join(_printable(str(text or "")).split()) for text in (make, model))
    return (name if name.lower().startswith(maker.lower()) else f"{maker} {name}".strip()) or None


def _zone(offset: re.Match[str] | None) -> timezone:
    """The zone of `+02:00`, `+0200`, `+02` or `Z`; UTC where none is told, or one of a day and more."""
    hours, minutes = (int(offset[2] or 0), int(offset[3] or 0)) if offset else (0, 0)
    if offset is None or hours >= 24 or minutes >= 60:
        return UTC
    shift = timedelta(hours=hours, minutes=minutes)
    return timezone(-shift if offset[1] == "-" else shift)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
