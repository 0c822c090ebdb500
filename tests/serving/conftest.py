from doors import faces, mar, served  # noqa: F401  fixtures
