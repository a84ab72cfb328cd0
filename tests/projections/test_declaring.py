"""What a projection must be to be one.

Goal: what cannot work is refused when it is declared, with what was expected and what was found; what works is dispatched by the
types of its arguments. Method: declarations that are wrong in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, DateTime, ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rekindle import App, Entity, Event, Service, Supervisor
from rekindle.events import Deleted
from rekindle.projections import DROP, At, Database, Drop, Projection, Rows, projection
from rekindle.projections.database import url_of
from rekindle.projections.rows import Shape
from rekindle.projections.tables import shape_of, table_of
from rekindle.supervisors import DeclarationError
from tests.support.viewed import Counted, OrderRow, Received, Reserved, Stock, StockRow, TotalRow, bound, orders, stock


class Foreign(Event):
    pass


class Elsewhere(Entity):
    def apply(self, event: Foreign) -> None:
        pass


class Base(DeclarativeBase):
    """Of the tables here."""


class NoDefault(Base):
    __tablename__ = "no_default"
    sku: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class Numbered(Base):
    __tablename__ = "numbered"
    number: Mapped[int] = mapped_column(primary_key=True)


class Pointing(Base):
    __tablename__ = "pointing"
    sku: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int | None] = mapped_column(ForeignKey("numbered.number"))


class Rich(Base):
    """Columns whose values do not travel as they are."""

    __tablename__ = "rich"
    sku: Mapped[str] = mapped_column("id", primary_key=True)
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    at: Mapped[datetime | None] = mapped_column(DateTime)


AT = At("stock", "sku", 0, 1, 1, 1, 0)


def typed_wrong(event: int, row: StockRow) -> None: ...
def of_another(event: Foreign, row: StockRow) -> None: ...
def alone(event: Received) -> None: ...
def good(event: Received, row: Any) -> None: ...


def untyped(event: Received, row: StockRow) -> None: ...


del untyped.__annotations__["event"]


def declare(function: Any, table: type[Any] = StockRow, **settings: Any) -> object:
    """A declaration that a type checker would object to, too."""
    return projection(table, of=Stock, **settings)(function)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "event is no event": (
        lambda: declare(typed_wrong),
        "first argument of typed_wrong to be typed as one or a union of Events, got <class 'int'>",
    ),
    "event is not typed": (lambda: declare(untyped), "got None"),
    "event of another entity": (lambda: declare(of_another), "Foreign of of_another is no event of Stock"),
    "no row": (lambda: declare(alone), r"a function of \(event, row\) or \(event, row, at\), got \['event'\]"),
    "no table": (lambda: declare(good, Stock), "expected a declarative SQLAlchemy class"),
    "no default": (lambda: declare(good, NoDefault), "begins with its columns' defaults, and n has none"),
    "key is no text": (lambda: declare(good, Numbered), "one primary key column of type str"),
    "foreign key": (lambda: declare(good, Pointing), "has foreign keys"),
    "name": (lambda: declare(good, name="a:b"), "got 'a:b'"),
    "version": (lambda: declare(good, version=0), "version must be at least 1, got 0"),
}


@pytest.mark.parametrize(("wrong", "text"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_declaration_is_refused(wrong: Callable[[], object], text: str) -> None:
    with pytest.raises(DeclarationError, match=text):
        wrong()


def test_a_wrong_class_is_refused() -> None:
    class Nothing(Projection):
        tables = (StockRow,)
        of = (Stock,)

    class Twice(Projection):
        tables = (StockRow,)
        of = (Stock,)

        def on_received(self, event: Received, rows: Rows, at: At) -> None: ...
        def on_any(self, event: Received | Reserved, rows: Rows, at: At) -> None: ...

    class Short(Projection):
        tables = (StockRow,)
        of = (Stock,)

        def on_received(self, event: Received) -> None: ...

    class Empty(Projection):
        def on_received(self, event: Received, rows: Rows, at: At) -> None: ...

    for cls, text in (
        (Nothing, "expected methods called on_..., there is none"),
        (Twice, "Received has two handlers"),
        (Short, r"expected on_received\(self, event, rows, at\), got \['event'\]"),
        (Empty, "expected `tables` and `of`"),
    ):
        with pytest.raises(DeclarationError, match=text):
            cls()


def test_what_is_taken_is_what_the_types_say() -> None:
    assert stock.takes == {Stock: {Received, Reserved, Deleted}}
    assert (stock.name, stock.version) == ("stock", 1)
    assert orders.takes == {Stock: {Received, Reserved}}

    @projection(TotalRow, of=Stock, key=lambda event, at: "all")
    def every(event: Event, row: TotalRow, at: At) -> None:
        row.n += at.index

    assert every.takes == {Stock: {Received, Reserved, Counted}}


def test_a_declared_function_is_still_a_function() -> None:
    row = StockRow(sku="a", on_hand=1, orders=0)
    stock(Received(qty=2), row)
    assert row.on_hand == 3


def test_an_app_knows_its_projections() -> None:
    tree = Supervisor("root", children=[Service("stock", Stock, shards=1, instances=1)])
    app = App("shop", tree=tree, projections=[stock, orders])
    assert [hosted.name for hosted in app.projection("orders").services] == ["stock"]
    with pytest.raises(DeclarationError, match="has no projection 'x'"):
        app.projection("x")
    with pytest.raises(DeclarationError, match="projections with different names"):
        App("shop", tree=tree, projections=[stock, stock])
    elsewhere = projection(StockRow, of=Elsewhere)(of_another)
    with pytest.raises(DeclarationError, match=r"reads \['Elsewhere'\], which are no services"):
        App("shop", tree=tree, projections=[elsewhere])


@pytest.mark.parametrize("address", ["mysql://host/db", "postgresql+asyncpg://host/db", "sqlite://"])
def test_an_address_of_something_else_is_refused(address: str) -> None:
    with pytest.raises(DeclarationError, match="expected a database as"):
        url_of(address)


def test_addresses() -> None:
    assert url_of("postgresql://host/db").drivername == "postgresql+psycopg"
    assert url_of("views.sqlite").database == "views.sqlite"
    assert url_of("sqlite:////tmp/v.sqlite").database == "/tmp/v.sqlite"


def test_another_column_is_another_shape() -> None:
    dialect = create_engine("sqlite://").dialect
    assert shape_of(bound(stock), dialect) == shape_of(bound(stock), dialect) != shape_of(bound(orders), dialect)


# Rows


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = Database(str(tmp_path / "views.sqlite"))
    yield database
    database.close()


def rows_of(database: Database, connection: Any, *models: type) -> Rows:
    """The rows of these tables, which are made."""
    for model in models:
        table_of(model).create(connection, checkfirst=True)
    return Rows(connection, [Shape(model, table_of(model), database.engine.dialect) for model in models])


def test_rows_are_written_as_their_types_say_and_only_if_changed(database: Database) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).replace(tzinfo=None)
    with database.transaction() as connection:
        rows = rows_of(database, connection, Rich)
        row = rows.at(Rich, "a")
        row.tags.append("new")
        row.at = now
        rows.put(Rich(sku="b"))
        rows.flush()
    with database.transaction() as connection:
        rows = rows_of(database, connection, Rich)
        rows.load([(Rich, "a"), (Rich, "b"), (Rich, "c")])
        a, b = rows.get(Rich, "a"), rows.get(Rich, "b")
        assert a is not None
        assert b is not None
        assert ((a.tags, a.at), (b.tags, b.at)) == ((["new"], now), ([], None))
        assert rows.get(Rich, "c") is None
        a.tags.append("changed in place")
        rows.drop(Rich, "b")
        before = connection.exec_driver_sql("SELECT total_changes()").scalar_one()
        rows.flush()
        assert connection.exec_driver_sql("SELECT total_changes()").scalar_one() == before + 2
    with database.transaction() as connection:
        rows = rows_of(database, connection, Rich)
        found = rows.get(Rich, "a")
        assert found is not None
        assert found.tags == ["new", "changed in place"]
        assert rows.get(Rich, "b") is None


def test_a_key_that_a_handler_changes_is_an_error(database: Database) -> None:
    with database.transaction() as connection:
        rows = rows_of(database, connection, OrderRow)
        rows.put(OrderRow(number="1", sku="a", qty=1))
        found = rows.get(OrderRow, "1")
        assert found is not None
        found.number = "2"
        with pytest.raises(Exception, match="changed the key of a row of orders from '1' to '2'"):
            rows.flush()
        with pytest.raises(Exception, match="StockRow is none of this projection's tables: OrderRow"):
            rows.get(StockRow, "a")


def test_rows_are_dropped_by_the_end_of_their_entity_or_by_a_handler(database: Database) -> None:
    @projection(StockRow, of=Stock)
    def gone_at_nothing(event: Received, row: StockRow) -> Drop | None:
        row.on_hand += event.qty
        return DROP if row.on_hand == 0 else None

    with database.transaction() as connection:
        rows = rows_of(database, connection, StockRow)
        for end in (Received(qty=-5), Deleted()):
            gone_at_nothing.handle(Received(qty=5), rows, AT)
            assert rows.get(StockRow, "sku") is not None
            gone_at_nothing.handle(end, rows, AT)
            assert rows.get(StockRow, "sku") is None
