"""What a gallery of 10,000 faces costs: drawing its sheets beside scoring the same pictures, its size, and opening it.

AGEWATCH_DATA names real pictures; without, faces are drawn.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import skimage
from PIL import Image
from results import table, write_section

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import open_page  # type: ignore[import-not-found]

FACES = 10_000
SOURCES = ("archive_faces", "facial_age")
AGEWATCH = Path(sys.executable).with_name("agewatch")
MEASURE = """(() => {
  if (!performance.getEntriesByName("built").length || window.measuring) return false;
  window.measuring = true;
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const clock = async (act) => {
    const start = performance.now();
    act();
    await frame();
    return performance.now() - start;
  };
  const set = (id, value) => () => {
    document.getElementById(id).value = value;
    document.querySelector("form").dispatchEvent(new Event("change"));
  };
  (async () => {
    while (!performance.getEntriesByName("first-contentful-paint").length) await frame();
    const built = performance.getEntriesByName("built")[0];
    const told = {
      built: built.duration, ready: built.startTime + built.duration,
      painted: performance.getEntriesByName("first-contentful-paint")[0].startTime,
      cards: document.querySelectorAll("li").length,
      narrowed: await clock(set("from", "50")), widened: await clock(set("from", "")),
      end: await clock(() => scrollTo(0, document.body.scrollHeight)),
    };
    document.body.textContent = JSON.stringify(told);
  })();
})() || document.body.textContent.startsWith('{"built"')"""
"""The page measures itself, and then holds only what it found."""


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"AGEWATCH_HOME": str(home / "home"), "OMP_NUM_THREADS": "1"}
        archive = home / "faces"
        archive.mkdir()
        _fill(archive)
        costs = [_costs("10,000 crops of 200 pixels", archive, "crop")]
        page = home / "home" / "galleries" / "faces" / "index.html"
        portraits = Path(os.environ.get("AGEWATCH_DATA", "")) / "archive_portraits"
        if portraits.is_dir():
            costs.append(_costs("1,500 portraits", portraits, "detect"))
        sizes = [page.stat().st_size, sum(sheet.stat().st_size for sheet in page.parent.glob("sheets-*/*"))]
        told = _opened(page, home)
    write_section(
        "A gallery of 10,000 faces",
        "Written by `benchmarks/gallery.py`. CPU milliseconds a picture, starting included:\n\n"
        + table(["pictures", "scoring", "drawing", "ratio"], costs)
        + f"\n\nThe page has {sizes[0] / 1e6:.1f} MB, its sheets {sizes[1] / 1e6:.0f} MB. In headless Chromium, by the"
        f" clock, on {len(os.sched_getaffinity(0))} cores at a load of {os.getloadavg()[0]:.0f}:\n\n"
        + table(["what", "ms"], [[name, f"{value:.0f}"] for name, value in told.items()]),
    )


def _fill(archive: Path) -> None:
    """Put FACES pictures of one face into folders of a hundred."""
    data = os.environ.get("AGEWATCH_DATA")
    real = [file for name in SOURCES for file in sorted((Path(data) / name).rglob("*.jpg"))] if data else []
    rng = np.random.default_rng(0)
    whole = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png"))[:, :, ::-1]
    for number in range(FACES):
        place = archive / f"{number // 100:03}" / f"{number:05}.jpg"
        place.parent.mkdir(exist_ok=True)
        if number < len(real):
            shutil.copyfile(real[number], place)
            continue
        left, top, side = (int(value) for value in rng.integers((110, 0, 200), (150, 30, 250)))
        face = cv2.resize(whole[top : top + side, left : left + side], (200, 200))
        noise = rng.normal(0, 6, face.shape)
        cv2.imwrite(str(place), np.clip(face + noise, 0, 255).astype(np.uint8))


def _costs(what: str, archive: Path, mode: str) -> list[str]:
    files = sum(1 for _ in archive.rglob("*.*"))
    score = _cpu(["score", str(archive), "--faces", mode, "--max-refused", "1"])
    draw = _cpu(["gallery", archive.name])
    print(what, score, draw, flush=True)
    return [what, f"{1000 * score / files:.2f}", f"{1000 * draw / files:.2f}", f"{draw / score:.2f}"]


def _cpu(arguments: list[str]) -> float:
    """Seconds on cores of a command and its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([AGEWATCH, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _opened(page: Path, home: Path) -> dict[str, float]:
    """What the page itself measures when it is opened, by what is measured."""
    shown = open_page(page, home / "profile", home / "page.png", drawn=MEASURE)
    assert shown.problems == []
    told = json.loads(shown.text)
    assert told["cards"] == FACES
    words = {
        "painted": "first paint", "ready": "all faces there, filters ready", "built": "of that, the page's script",
        "narrowed": "a filter narrowed, until the next frame", "widened": "all shown again",
        "end": "a jump to the end",
    }  # fmt: skip
    return {words[name]: told[name] for name in words}


if __name__ == "__main__":
    main()
