"""agewatch: ages for every face in an archive of pictures, and a drift verdict that can be believed."""

__version__ = "0.1.0"
