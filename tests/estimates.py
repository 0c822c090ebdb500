"""Faces with known ages and estimates of them, drawn by chance."""

import numpy as np
import pandas as pd

from agewatch.estimator.spec import Mode

CROPS: list[Mode] = ["crop"]


def simulated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces whose distributions are too narrow and, for the young, shifted: calibration has to mend both."""
    random = np.random.default_rng(seed)
    ages = random.integers(0, 101, n)
    centres = ages + random.normal(0, 3 + ages / 10) + (ages < 20) * 4
    years = np.arange(101)
    bells = np.exp(-((years - centres[:, None].clip(0, 100)) ** 2) / (2 * 3**2))
    return (bells / bells.sum(axis=1, keepdims=True)).astype(np.float32), ages


def labelled_faces(n: int = 2000) -> pd.DataFrame:
    """Faces of two sources with an error of one year, but of nine for faces labelled black and under 13."""
    random = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "source": np.where(np.arange(n) % 4, "crops", "portraits"),
            "age": random.integers(0, 100, n),
            "sex": random.choice(["female", "male"], n),
            "ethnicity": random.choice(["black", "white", None], n),
            "mode": np.where(np.arange(n) % 4, "crop", "detect"),
            "box_h": random.uniform(10, 300, n),
            "sharpness": random.uniform(0, 1, n),
        }
    )
    error = np.where((frame["ethnicity"] == "black") & (frame["age"] < 13), 9.0, 1.0)
    frame["predicted"] = frame["age"] + error
    width = np.where(error > 1, 10.0, 6.0)
    return frame.assign(low=frame["predicted"] - width / 2, high=frame["predicted"] + width / 2, covered=error < 3)
