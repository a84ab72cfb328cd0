"""Read models: the log folded into tables that anybody can query.

Reading order: `declaring` (what users write), `reading` (positions, and what counts), `writing` (one batch, one transaction)
with `rows` and `books`, `feeding` and `projector` (who keeps it going), `tables` and `rebuilding`, `views` (for readers).
"""

from rekindle.projections.database import Database
from rekindle.projections.declaring import (
    DROP,
    PARK,
    STOP,
    At,
    Declared,
    Drop,
    OnPoison,
    Projection,
    TableProjection,
    projection,
)
from rekindle.projections.errors import (
    DatabaseAway,
    DatabaseRefused,
    DataRefused,
    HistoryGone,
    OneNodeOnly,
    PoisonEvent,
    PositionNotConfirmed,
    ProjectionError,
    ProjectionFenced,
    RebuildNeeded,
    ViewIsBehind,
)
from rekindle.projections.projector import Projector
from rekindle.projections.rebuilding import Done, Rebuilder, SwapFailed
from rekindle.projections.rows import Rows
from rekindle.projections.views import Place, ProjectionReport, ShardReport, Views
from rekindle.projections.writing import Bound

__all__ = [
    "DROP",
    "PARK",
    "STOP",
    "At",
    "Bound",
    "DataRefused",
    "Database",
    "DatabaseAway",
    "DatabaseRefused",
    "Declared",
    "Done",
    "Drop",
    "HistoryGone",
    "OnPoison",
    "OneNodeOnly",
    "Place",
    "PoisonEvent",
    "PositionNotConfirmed",
    "Projection",
    "ProjectionError",
    "ProjectionFenced",
    "ProjectionReport",
    "Projector",
    "RebuildNeeded",
    "Rebuilder",
    "Rows",
    "ShardReport",
    "SwapFailed",
    "TableProjection",
    "ViewIsBehind",
    "Views",
    "projection",
]
