"""What several tests share, and bench and demo too."""

from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = REPOSITORY / "src" / "rekindle"
ROOMS: Final = ("events", "actors", "supervisors", "projections", "chaos")
"""From the ground floor up: a room may import itself and those before it."""

ON_TOP: Final = ("gateway",)
"""Packages that stand on all rooms, as the app and the command line do; no room imports them."""
