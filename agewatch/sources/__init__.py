"""Where an archive's files lie: each kind of place lists them in order and reads them by path."""
