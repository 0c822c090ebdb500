"""Why a face of one picture has its age, written to a file."""

import json
from pathlib import Path

from agewatch.errors import UsageError
from agewatch.estimator.engine import open_engine
from agewatch.estimator.explain import Explanation, explain, overlay, place
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Mode
from agewatch.files import replacing
from agewatch.scoring.scorer import Execution


def write(picture: Path, out: Path, *, model_path: Path, how: Execution, mode: Mode, face: int) -> Explanation:
    """Write a PNG over the face, or JSON with years a cell; nothing else is written.

    Raises ImageError where the picture can't be read, AgewatchError where it has no face, UsageError where it is not
    there, there is no face of this number, or `out` is neither .png nor .json; OSError.
    """
    if out.suffix not in (".png", ".json"):
        raise UsageError(f"An explanation is written as .png or .json, not to {out.name}.")
    if not picture.is_file():
        raise UsageError(f"There is no picture {picture}.")
    model = AgeModel.load(model_path)
    seen = look(picture.read_bytes(), YuNet() if mode == "detect" else None, model.spec.cut)
    told = {"model": model.id, "mode": mode, "width": seen.width, "height": seen.height}
    told |= place(seen.faces, face, model.spec.cut)
    found = explain(seen.chips[face], model, open_engine(model, cache=how.cache, precision=how.precision))
    content = json.dumps(told | found.content(), indent=1).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as aside:
        aside.write_bytes(overlay(found) if out.suffix == ".png" else content)
    return found
