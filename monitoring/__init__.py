"""Says whether predictions drift, and whether that means anything: `verdict`, `report`, `drift`."""
