"""Metrics as tables: for a person in Markdown, and as plain data for JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from agewatch.labelled.metrics import Metrics, Slice


def as_markdown(table: Sequence[Metrics]) -> str:
    """Render a comparison table."""
    head = ("candidate", "n", "MAE", "95 % CI", "RMSE", "bias", "within 5 years", "worst slice", "CPU ms a face", "MB")
    rows = [
        (
            row.name, f"{row.n}", f"{row.mae:.2f}", f"{row.mae_low:.2f} to {row.mae_high:.2f}", f"{row.rmse:.2f}",
            f"{row.bias:+.2f}", f"{row.cs5:.1%}",
            f"{row.worst.dimension} {row.worst.value}: {row.worst.mae:.2f} (n {row.worst.n})" if row.worst else "",
            "" if row.cost_ms is None else f"{row.cost_ms:.2f}",
            "" if row.megabytes is None else f"{row.megabytes:.1f}",
        )
        for row in table
    ]  # fmt: skip
    return markdown_table(head, rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, each line ended."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return "".join([lines[0], "|---" * len(head), "|\n", *lines[1:]])


def as_records(table: Sequence[Metrics]) -> list[dict[str, Any]]:
    """The comparison table as plain data, for JSON."""
    return [asdict(row) for row in table]


def from_records(records: Sequence[dict[str, Any]]) -> list[Metrics]:
    """The comparison table that `as_records` made plain, also of models made before a column was added."""
    return [Metrics(**(row | {"worst": Slice(**row["worst"]) if row.get("worst") else None})) for row in records]


def slice_row(part: Slice) -> tuple[str, ...]:
    """A slice with intervals as text: dimension, value, n, MAE, its limits, bias, coverage, its limits, width."""
    return (
        part.dimension, part.value, f"{part.n:,}", f"{part.mae:.2f}", f"{part.mae_low:.2f} to {part.mae_high:.2f}",
        f"{part.bias:+.2f}", f"{part.coverage:.1%}", f"{part.coverage_low:.1%} to {part.coverage_high:.1%}",
        f"{part.width:.1f}",
    )  # fmt: skip
