# This package has no type information: what comes from it is Any, for mypy (pyproject.toml) as for pyright.
from typing import Any

def __getattr__(name: str) -> Any: ...
