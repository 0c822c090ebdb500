"""The model on a server of its own."""
