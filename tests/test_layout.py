"""The layout: the rooms stand at the top of the repository, and there is one of each.

A top-level folder is a link to the room under src/rekindle, where every tool, and a checkout without links, finds it.
"""

import pytest

import rekindle
from tests.support import ON_TOP, REPOSITORY, ROOMS, SOURCE


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_at_the_top_is_the_one_in_src(room: str) -> None:
    assert (REPOSITORY / room).resolve() == SOURCE / room
    assert (SOURCE / room).is_dir()


def test_every_package_in_src_is_a_room_or_stands_on_top() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*ROOMS, *ON_TOP}


def test_rekindle_is_imported_from_src() -> None:
    assert list(rekindle.__path__) == [str(SOURCE)]


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()
