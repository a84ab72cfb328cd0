"""The demo's data: one month of flights, cut out of the whole-year file.

Run once, by hand; its output is in `data/`, and `data/README.md` says how to check it:

    python -m examples.flights.extract ../shared/data/nycflights13_flights.csv.xz

The year's file is not in time order. Commands are sent in file order, so the cut is sorted here, once: by
scheduled departure, then by what makes the order total. No row is left out and no value is touched.
"""

import argparse
import csv
import hashlib
import io
import lzma
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

Row: TypeAlias = dict[str, str]
"""One line of the CSV, by column name. Values are as in the file: a missing one is `NA`."""

NO_VALUE = "NA"
JANUARY = Path(__file__).parent / "data" / "flights_2013_01.csv.xz"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of an xz-compressed CSV, in file order."""
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def month_of(rows: Iterable[Row], year: int, month: int) -> list[Row]:
    """The flights scheduled in that month (New York's date), in the order in which they were to leave."""
    wanted = (str(year), str(month))
    return sorted((row for row in rows if (row["year"], row["month"]) == wanted), key=_schedule)


def _schedule(row: Row) -> tuple[str, int, str, int, str]:
    return row["time_hour"], int(row["minute"]), row["carrier"], int(row["flight"]), row["origin"]


def to_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV with a header; the line ends are those of the source, so an unsorted cut could be diffed."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def main() -> None:
    """Write the month and print what `data/README.md` states about it."""
    parser = argparse.ArgumentParser(description="Cut January 2013 out of nycflights13.")
    parser.add_argument("year_file", type=Path)
    rows = month_of(read_rows(parser.parse_args().year_file), 2013, 1)
    content = to_csv(rows)
    JANUARY.parent.mkdir(exist_ok=True)
    JANUARY.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    without_tailnum = sum(row["tailnum"] == NO_VALUE for row in rows)
    print(f"{JANUARY.name}: {len(rows):,} rows, {without_tailnum} of them without a tail number")
    print(f"sha256 of the CSV: {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
