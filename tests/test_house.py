"""The house holds: imports point inward, files and functions stay small, pins agree."""

import ast
import re
import tomllib
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("agewatch", "flows", "handler", "monitoring")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
GROUND = {"errors", "settings", "files", "progress", "processes", "words"}
MAY_IMPORT = {  # rooms that a room may import beside itself
    "handler": {"estimator", "errors"},
    "estimator": {"errors"},
    "remote": {"estimator", "errors", "settings"},
    "sources": GROUND,
    "scoring": {"remote", "sources", "estimator", *GROUND},
    "exports": {"scoring", "sources", "estimator", *GROUND},
    "gallery": {"scoring", "sources", "estimator", *GROUND},
    "labelled": {"scoring", "sources", "estimator", *GROUND},
    "training": {"labelled", "scoring", "sources", "estimator", *GROUND},
    "release": {"labelled", "scoring", "sources", "estimator", *GROUND},
    "serving": {"release", "scoring", "estimator", *GROUND},
    "nights": {"release", "labelled", "scoring", "sources", "estimator", *GROUND},
    "upkeep": {"nights", "release", "labelled", "scoring", "sources", "estimator", *GROUND},
}
WINGS = {*MAY_IMPORT} - {"handler"}
MAY_IMPORT |= {  # the upper floors
    "api": WINGS | GROUND,
    "monitoring": WINGS | GROUND | {"api"},
    "flows": WINGS | GROUND | {"api", "monitoring"},
    "cli": WINGS | GROUND | {"api", "monitoring", "flows"},
}
ITS_OWN = ("__init__.py", "errors.py")
"""What a model file carries of the core beside the estimator."""
ONLY_IN = {"prefect": "flows", "evidently": "monitoring", "ts": "nowhere", "model_archiver": "nowhere"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, `from package import module` as package.module where that is a file."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {as_module(node.module or "", alias.name) for alias in node.names}
    return found


def as_module(package: str, name: str) -> str:
    inner = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if inner.with_suffix(".py").exists() or inner.is_dir() else package


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] in PACKAGES}


def room_of(module: str) -> str:
    """The wing of the core, its ground file, or the package that a module lies in."""
    package, *inner = module.split(".")
    return inner[0] if package == "agewatch" and inner else package


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_inward_and_down(path: Path) -> None:
    imported, room = imports(path), room_of(name_of(path))
    rooms = {room_of(module) for module in ours(imported)} - {room, "agewatch"}
    if room in MAY_IMPORT:
        assert rooms <= MAY_IMPORT[room], f"{name_of(path)} imports {rooms - MAY_IMPORT[room]}"
    else:  # the ground, and the package's own face
        assert rooms <= ({"cli"} if room == "__main__" else GROUND), f"{name_of(path)} imports {rooms}"
    for library, place in ONLY_IN.items():
        if library in {module.split(".")[0] for module in imported}:
            assert room == place, f"{library} is imported in {name_of(path)}"


def test_no_circle() -> None:
    graph = {name_of(path): ours(imports(path)) - {name_of(path)} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_rooms_are_entered_only_inside_commands(path: Path) -> None:
    if room_of(name_of(path)) == "cli" and path.stem != "display":
        rooms = {room_of(module) for module in ours(imports(path, top_level_only=True))}
        assert rooms <= {"agewatch", "api", "cli", *GROUND}


def test_a_wing_says_in_its_docstring_whose_story_it_is_and_nothing_else() -> None:
    for wing in (ROOT / "agewatch").iterdir():
        if (wing / "__init__.py").is_file():
            assert len(ast.parse((wing / "__init__.py").read_text()).body) == 1, wing


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{name_of(path)}.{node.name} has {lines} lines"


def test_no_room_has_a_name_that_says_nothing() -> None:
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "common", "manager")]


def requirements(texts: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        assert pin, f"constraints.txt holds more than a pin: {line}"
        pins[canonicalize_name(pin[1])] = pin[2]
    return pins


def test_constraints_pin_every_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted |= {name: found for name, found in requirements(extra).items() if name != "agewatch"}
    pins = constraints()
    for name, requirement in wanted.items():
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{requirement} excludes the pin {pins[name]}"


def test_conda_users_get_the_same_python_and_the_same_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python, pip, by_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert python == f"python{project['requires-python']}"
    assert pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e ."]}


def test_the_tracked_model_is_small_enough() -> None:
    [starter] = (ROOT / "model_store").glob("*.mar")
    assert starter.stat().st_size <= 16_000_000


def test_the_tracked_model_carries_todays_code() -> None:
    """Whoever edits what a model file carries packages the starter again."""
    [starter] = (ROOT / "model_store").glob("*.mar")
    with zipfile.ZipFile(starter) as archive:
        code = {name: archive.read(name) for name in archive.namelist() if name.startswith("agewatch/")}
        handler = archive.read("age_handler.py")
    carried = [*(ROOT / "agewatch" / "estimator").glob("*.py"), *(ROOT / "agewatch" / name for name in ITS_OWN)]
    assert code == {str(path.relative_to(ROOT)): path.read_bytes() for path in carried}
    assert handler == (ROOT / "handler" / "age_handler.py").read_bytes()
