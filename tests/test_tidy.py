"""The rules of this code base that no linter knows.

Goal: the arrows between the rooms, the seams and the faces stay what ARCHITECTURE.md says they are.
Method: each rule is a function from source text to its violations. It is tried on a bad snippet first, so that none
holds only because it sees nothing, and then on every file there is.
"""

import __future__

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ON_TOP, REPOSITORY, ROOMS, SOURCE

SEAMS = ("aiokafka", "ray", "websockets")
CODE = [REPOSITORY / folder for folder in ("src", "tests", "examples", "bench")]


def _modules(*folders: Path) -> list[Path]:
    found = sorted(path for folder in folders for path in folder.rglob("*.py"))
    assert found, f"expected Python modules in {folders}, found none"
    return found


def _imported(source: str) -> Iterator[str]:
    """Every imported name in full; one that starts with a dot was imported relatively."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from (f"{'.' * level}{module or ''}.{alias.name}" for alias in names)
            case _:
                pass


# The arrows


def _points_up(room: str, name: str) -> bool:
    """Whether the name is ours and comes from a room above, or from the face, the app or the CLI on top of all."""
    package, _, rest = f"{name}.".partition(".")
    return package == "rekindle" and rest.partition(".")[0] not in ROOMS[: ROOMS.index(room) + 1]


def _imports_upwards(room: str, source: str) -> list[str]:
    return [name for name in _imported(source) if _points_up(room, name)]


def test_an_import_upwards_is_seen() -> None:
    source = (
        "import rekindle.chaos\nfrom rekindle import actors, App\nfrom rekindle.events import Offset\nimport rekindle\n"
        "from rekindle.gateway import build"
    )
    assert _imports_upwards("actors", source) == [
        "rekindle.chaos",
        "rekindle.App",
        "rekindle",
        "rekindle.gateway.build",
    ]
    assert _imports_upwards("chaos", source) == ["rekindle.App", "rekindle", "rekindle.gateway.build"]


def test_no_room_imports_from_above() -> None:
    rooms = {path: path.relative_to(SOURCE).parts[0] for path in _modules(SOURCE)}
    in_rooms = {path: room for path, room in rooms.items() if room in ROOMS}
    assert in_rooms
    assert {path: up for path, room in in_rooms.items() if (up := _imports_upwards(room, path.read_text()))} == {}


def test_no_room_and_no_face_needs_the_gateway() -> None:
    """It brings a web framework: only who serves HTTP waits for that, and `cli` imports it by name when it is asked to."""
    sources = {path: path.read_text() for path in _modules(SOURCE) if path.relative_to(SOURCE).parts[0] not in ON_TOP}
    assert [
        path
        for path, source in sources.items()
        if any(f"{n}.".startswith("rekindle.gateway.") for n in _imported(source))
    ] == []


def test_a_relative_import_is_seen() -> None:
    assert list(_imported("from . import a\nfrom ..b import c")) == ["..a", "..b.c"]


def test_imports_are_absolute() -> None:
    assert [path for path in _modules(*CODE) if any(name[0] == "." for name in _imported(path.read_text()))] == []


# The seams


def _importers(package: str, sources: dict[str, str]) -> list[str]:
    return [name for name, source in sources.items() if package in {i.partition(".")[0] for i in _imported(source)}]


def test_an_importer_is_seen() -> None:
    sources = {"a": "import ray", "b": "from ray.util import state", "c": "import raytracer\nfrom events import ray"}
    assert _importers("ray", sources) == ["a", "b"]


@pytest.mark.parametrize("package", SEAMS)
def test_one_module_knows_the_package_behind_a_seam(package: str) -> None:
    sources = {str(path.relative_to(SOURCE)): path.read_text() for path in _modules(SOURCE)}
    assert len(importers := _importers(package, sources)) == 1, importers


# The faces


def _public_names(module: ModuleType) -> list[str]:
    """What a room hands on: everything in it that is no submodule, not private and no `from __future__`."""
    return sorted(
        name
        for name, value in vars(module).items()
        if name[0] != "_" and not isinstance(value, ModuleType) and getattr(__future__, name, None) is not value
    )


def test_a_public_name_is_seen() -> None:
    module = ModuleType("room")
    vars(module).update(annotations=__future__.annotations, log=ast, _hidden=1, b=2, A=3)
    assert _public_names(module) == ["A", "b"]


@pytest.mark.parametrize("name", ["rekindle", *(f"rekindle.{room}" for room in (*ROOMS, *ON_TOP))])
def test_all_names_what_is_there(name: str) -> None:
    """Its order is ruff's (RUF022), which also mends it."""
    module = importlib.import_module(name)
    assert sorted(getattr(module, "__all__", [])) == _public_names(module)


# The heads


def _lacks_a_head(source: str) -> bool:
    return bool(source.strip()) and ast.get_docstring(ast.parse(source)) is None


def test_a_missing_head_is_seen() -> None:
    assert _lacks_a_head("import ast\n")
    assert not _lacks_a_head('"""What this is."""\n')


def test_every_module_says_what_it_is() -> None:
    assert [path for path in _modules(*CODE) if _lacks_a_head(path.read_text())] == []


# The waits: a test waits for what it waits for, not for a time in which it usually happens


def _sleeps(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _is_sleep(call)] + [
        name for name in _imported(source) if name in {"time.sleep", "asyncio.sleep"}
    ]


def _is_sleep(call: ast.Call) -> bool:
    match ast.unparse(call.func), call.args:
        case "time.sleep", _:
            return True
        case "asyncio.sleep", [ast.Constant(value=int() | float() as delay), *_]:
            return delay > 0
        case _:
            return False


def test_a_sleep_is_seen() -> None:
    source = "from time import sleep\ntime.sleep(delay)\nasyncio.sleep(0.1)\nasyncio.sleep(0)\nclock.sleep(5)"
    assert _sleeps(source) == ["time.sleep(delay)", "asyncio.sleep(0.1)", "time.sleep"]


def test_no_test_sleeps() -> None:
    assert {path: sleeps for path in _modules(REPOSITORY / "tests") if (sleeps := _sleeps(path.read_text()))} == {}


# What belongs to one machine

_OF_ONE_MACHINE = re.compile(
    r"""
    https?://[^\s"']*/simple\b                                   # an index of Python packages, whoever runs it
    | \b(?:pypi\.org/simple|files\.pythonhosted\.org|registry\.npmjs\.org|repo1?\.maven(?:\.apache)?\.org)
    | (?<![\w.~-])[/]work\b                                      # where we happen to work
    """,
    re.VERBOSE,
)


def _files() -> list[Path]:
    """Every file that is handed in, as git sees it."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout.split("\0")
    return [path for name in names if name and (path := REPOSITORY / name).is_file()]


def test_what_belongs_to_one_machine_is_seen() -> None:
    index, folder = "https://mirror.example/api" + "/simple", "/" + "work"
    text = f"from {index} into {folder}/main, unlike /workers, a/work and framework"
    assert _OF_ONE_MACHINE.findall(text) == [index, folder]


def test_no_file_holds_what_belongs_to_one_machine() -> None:
    files = _files()
    assert REPOSITORY / "pyproject.toml" in files
    found = {path: _OF_ONE_MACHINE.findall(path.read_text(errors="replace")) for path in files}
    assert {path: leaks for path, leaks in found.items() if leaks} == {}
