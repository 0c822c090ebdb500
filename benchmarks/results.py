"""RESULTS.md: one section a command, each written by its command alone."""

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(title: str, text: str) -> None:
    """Print a section and put it into RESULTS.md, in the place of the one with the same title or at the end."""
    section = f"# {title}\n\n{text.strip()}\n"
    before = RESULTS.read_text() if RESULTS.exists() else ""
    sections = [part.strip() + "\n" for part in re.split(r"^(?=# )", before, flags=re.MULTILINE) if part.strip()]
    places = [number for number, part in enumerate(sections) if part.startswith(f"# {title}\n")]
    if places:
        sections[places[0]] = section
    else:
        sections.append(section)
    RESULTS.write_text("\n\n".join(sections))
    print(section)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
