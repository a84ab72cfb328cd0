# Ray says that it is typed and is so only in parts: what comes from it is Any, for mypy (pyproject.toml) as for pyright.
from typing import Any

def __getattr__(name: str) -> Any: ...
