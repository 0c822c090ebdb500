"""The faces of an archive to look at: `choose` picks rows, `sheets` draws them, `page` lays both into one folder."""
