"""The nights: what is due when, what became of it, and how it is told.

`schedule` reads `prefect.yaml`; `ledger` holds a row for each night that was due, written by the flow itself.
`backup` and `restore` keep a home, `retention` clears away what is old, `doctor` says what is wrong.
"""
