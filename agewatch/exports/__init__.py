"""Rows in the forms of others: files of rows, MegaDetector's JSON, and XMP sidecars beside pictures."""
