"""A model's life: the store, packaging, and the gate that lets only a better one in."""
