"""The nights: what is due when, what became of it, and how it is told.

`schedule` reads `prefect.yaml`, which `init` writes; `ledger` holds a row for each night that was due, and `night`
writes it; `status` and `alerts` tell of them.
"""
