"""How numbers of things are said to a person."""


def counted(n: int, noun: str) -> str:
    """`1 face`, `2,000 faces`: a noun whose plural takes an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
