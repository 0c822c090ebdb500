"""What Ray costs beside the local pool, and what a second worker brings, on the same pictures.

Two Ray nodes of one core each on this machine; runs take turns, so that what else the machine does falls on all.
`AGEWATCH_DATA` names real pictures.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from results import table, write_section

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
AGEWATCH = Path(sys.executable).with_name("agewatch")
ARCHIVE = Path(os.environ["AGEWATCH_DATA"]) / "archive_portraits"
PICTURES = 1500


def main() -> None:
    """Measure and write the section of RESULTS.md."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray = ["--runner", "ray", "--address", cluster.address]
        ways = {
            "local, 1 worker": ["--workers", "1"],
            "local, 2 workers": ["--workers", "2"],
            "Ray, 1 node": [*ray, "--workers", "1"],
            "Ray, 2 nodes": ray,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(ROUNDS + 1):
                for way, options in ways.items():
                    took = _seconds(options, Path(folder) / "home", Path(folder) / f"{way} {number}")
                    if number:  # the first converts the network
                        seconds[way].append(took)
    finally:
        cluster.shutdown()
    base = seconds["local, 2 workers"]
    rows = [[way, *_figures(took, base)] for way, took in seconds.items()]
    write_section(
        "Ray",
        f"Written by `python benchmarks/on_ray.py {ROUNDS}`: {PICTURES:,} portraits scored from reading to the last"
        f" commit, two Ray nodes of one core each on this machine of {os.cpu_count()} cores, medians of {ROUNDS} runs"
        " that took turns; the ratio is that of each round to the local pool's two workers.\n\n"
        f"{table(['workers', 'seconds', 'ratio', 'from', 'to'], rows)}",
    )


def _seconds(options: list[str], home: Path, predictions: Path) -> float:
    command = [str(AGEWATCH), "score", str(ARCHIVE), "--precision", "f32", "--json", *options]
    command += ["--predictions", str(predictions)]
    ran = subprocess.run(
        command, env={**os.environ, "AGEWATCH_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    said = json.loads(ran.stdout)
    assert said["scored"] == PICTURES, said
    return float(said["seconds"])


def _figures(took: list[float], base: list[float]) -> list[str]:
    ratios = [one / other for one, other in zip(took, base, strict=True)]
    return [
        f"{statistics.median(took):.1f}",
        *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
    ]


if __name__ == "__main__":
    main()
