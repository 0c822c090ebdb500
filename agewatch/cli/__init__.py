"""The door: one file a group of commands. Rooms are imported inside commands."""
