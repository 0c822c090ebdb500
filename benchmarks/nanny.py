"""NannyML's Direct Loss Estimation on the faces of fit.py, run by a Python that has NannyML: agewatch does not.

Usage: nanny.py REFERENCE.parquet WINDOWS.parquet N, with the faces' features, `age`, and in the reference `age_true`.
Prints a JSON list: of every N faces in turn the estimated mean absolute error, years.
"""

import json
import sys

import nannyml  # type: ignore[import-not-found]
import pandas as pd

reference, faces = (pd.read_parquet(path) for path in sys.argv[1:3])
features = [name for name in faces.columns if name not in ("age", "age_true")]  # DLE adds the estimate itself
dle = nannyml.DLE(
    feature_column_names=features, y_pred="age", y_true="age_true", metrics=["mae"], chunk_size=int(sys.argv[3])
)
found = dle.fit(reference).estimate(faces).filter(period="analysis").to_df()
print(json.dumps(found["mae", "value"].tolist()))
