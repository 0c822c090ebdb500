"""What keeps an installation well: backup and restore, what is cleared away, room on the disk, and the doctor."""
