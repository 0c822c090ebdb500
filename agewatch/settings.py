"""Where things lie: argument, then AGEWATCH_* environment, then default. Nothing is written at import."""

from pathlib import Path

from pydantic import field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Folders of agewatch. `AGEWATCH_HOME` holds everything it writes; `AGEWATCH_MODEL_STORE` the model files."""

    model_config = SettingsConfigDict(env_prefix="AGEWATCH_", env_ignore_empty=True)

    home: Path = Path(".agewatch")
    model_store: Path = Path("model_store")

    @field_validator("home", "model_store")
    @classmethod
    def _expand(cls, folder: Path) -> Path:
        """`~` is the user's home, which no shell has expanded in a service's environment."""
        return folder.expanduser()

    @property
    def predictions(self) -> Path:
        """The default predictions table."""
        return self.home / "predictions"

    @property
    def reports(self) -> Path:
        """Drift reports, one folder an archive and run."""
        return self.home / "reports"

    @property
    def cache(self) -> Path:
        """Converted networks; safe to delete."""
        return self.home / "cache"
