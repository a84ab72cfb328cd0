"""`python -m bench [NAME ...] [--quick]`: run benchmarks, print one table, merge it into `.bench/results.json`.

A quick run is a look, not a figure to quote: its rows go to `.bench/quick.json`.
A benchmark that fails does not take the others' rows with it: its error is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import AsyncIterator

import bench
from bench import BENCHMARKS, Run, table
from bench.table import QUICK_RESULTS, RESULTS


async def rows_of(name: str, run: Run) -> AsyncIterator[table.Row]:
    """The rows of one benchmark as they come; a sync one runs in a thread, so that it may start a loop of its own."""
    rows = BENCHMARKS[name](run)
    if isinstance(rows, AsyncIterator):
        async for row in rows:
            yield row
    else:
        for row in await asyncio.to_thread(list, rows):
            yield row


async def run_all(names: list[str], run: Run) -> list[str]:
    """Run, store and show; the names of those that failed."""
    begun, rows, failed = load_average(), list[table.Row](), list[str]()
    async with run:
        for name in names:
            print(f"{name} ...", file=sys.stderr)
            try:
                async for row in rows_of(name, run):
                    print(f"  {row.name}  {table.number(row.value)} {row.unit}", file=sys.stderr)
                    rows.append(row)
            except Exception:  # noqa: BLE001  (whatever it is, it costs that benchmark only)
                traceback.print_exc()
                failed.append(name)
                await clear(run)
    table.write(rows, QUICK_RESULTS if run.quick else RESULTS)
    table.show(rows, f"{os.cpu_count()} cores; load average {begun} before, {load_average()} after")
    return failed


async def clear(run: Run) -> None:
    """Whatever state a failed benchmark has left, the next one gets a stage of its own."""
    try:
        await run.strike()
    except Exception:  # noqa: BLE001  (as above)
        traceback.print_exc()


def named(words: list[str]) -> list[str]:
    """The benchmarks that words name: each its own, or those below it (`supervision`: `supervision-nodes` and so on)."""
    return [
        name for name in BENCHMARKS if not words or any(name == word or name.startswith(f"{word}-") for word in words)
    ]


def load_average() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def main() -> int:
    for module in pkgutil.iter_modules(bench.__path__):
        if module.name != "__main__":
            importlib.import_module(f"bench.{module.name}")
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; without one, all")
    parser.add_argument("--quick", action="store_true", help=f"short windows: a look, kept in {QUICK_RESULTS.name}")
    parser.add_argument("--bootstrap", help="a broker that is already there (default: start a test broker)")
    arguments = parser.parse_args()
    unknown = [word for word in arguments.names if not named([word])]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    run = Run(quick=arguments.quick, bootstrap=arguments.bootstrap)
    failed = asyncio.run(run_all(named(arguments.names), run))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
