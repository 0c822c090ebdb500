"""The house holds: imports point inward, files and functions stay small, pins agree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("agewatch", "flows", "handler", "monitoring")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CORE = {f"agewatch.{name}" for name in ("errors", "endings", "images", "faces", "model", "network", "engine")}
DOOR = {"agewatch.cli", "agewatch.cli_models", "agewatch.__main__"}
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
    inner = ROOT.joinpath(*package.split("."), f"{name}.py")
    return f"{package}.{name}" if inner.exists() else package


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_inward(path: Path) -> None:
    name, imported = name_of(path), imports(path)
    room = name.split(".")[0]
    for module in ours(imported):
        target = module.split(".")[0]
        if name in DOOR:
            continue
        assert target not in ("flows", "handler") or target == room, f"{name} imports {module}"
        assert module not in DOOR, f"{name} imports the door"
        if room == "agewatch":
            assert target == "agewatch", f"the core imports {module}"
        if room == "monitoring":
            assert target in ("agewatch", "monitoring"), f"{name} imports {module}"
    if name in CORE or room == "handler":
        assert ours(imported) <= CORE | {"handler"}, f"{name} reaches out of the core: {ours(imported) - CORE}"
    for library, place in ONLY_IN.items():
        if library in {module.split(".")[0] for module in imported}:
            assert room == place, f"{library} is imported in {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_rooms_are_entered_only_inside_commands(path: Path) -> None:
    if name_of(path) in DOOR:
        modules = ours(imports(path, top_level_only=True))
        assert modules <= {"agewatch", "agewatch.errors", "agewatch.settings"} | DOOR


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
