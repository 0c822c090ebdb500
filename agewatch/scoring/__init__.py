"""An archive -> rows: one honest row for every file."""
