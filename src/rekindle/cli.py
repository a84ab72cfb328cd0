"""The command line: `rekindle up`, `rekindle down`, `rekindle state`."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import Annotated, Any, Final

import typer

from rekindle.events import RekindleError
from rekindle.supervisors import load
from rekindle.up import as_json, create_topics, launch_of, lines_of, state_of

UP_MAX_S: Final = 120.0
FAILED: Final = 1

cli = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)

Target = Annotated[str, typer.Argument(help="the application, as module:app", metavar="MODULE:APP")]
LogOption = Annotated[str | None, typer.Option("--log", help="another log than the application's own: kafka://host:port or a path")]
AddressOption = Annotated[str | None, typer.Option("--address", help="the Ray cluster, host:port; default: the one this machine is part of")]


@cli.command()
def up(target: Target, address: AddressOption = None, log: LogOption = None, wait: float = UP_MAX_S) -> None:
    """Run an application on a Ray cluster: create its topics, start its controller, wait until every shard is served."""
    app = load(target)
    cluster = _ray()
    asyncio.run(create_topics(app, log))
    cluster.connect(address, app.name)
    controller = cluster.start_controller(app.name, launch_of(target, app, log))
    served = controller.wait_up(wait)
    typer.echo(lines_of(controller.said()))
    if not served:
        typer.echo(f"{app.name}: not every shard is served after {wait} s", err=True)
        raise typer.Exit(FAILED)
    typer.echo(f"{app.name} is up: {', '.join(f'{s.name} ({s.shards} shards, {s.instances} instances)' for s in app.services)}")


@cli.command()
def down(target: Target, address: AddressOption = None) -> None:
    """Stop an application's instances and its controller. Its log stays."""
    app = load(target)
    cluster = _ray()
    cluster.connect(address, app.name)
    typer.echo(f"{app.name}: {cluster.find_controller(app.name).stop()}")


@cli.command()
def state(
    entity: Annotated[str, typer.Argument(help="the entity's class, or its service")],
    key: Annotated[str, typer.Argument(help="the entity's key")],
    app: Annotated[str, typer.Option("--app", envvar="REKINDLE_APP", help="the application, as module:app")],
    offset: Annotated[int | None, typer.Option(help="the state after this offset of the shard's log; default: now")] = None,
    log: LogOption = None,
) -> None:
    """Print an entity's state, read from the log."""
    typer.echo(as_json(asyncio.run(state_of(app, entity, key, offset, log))))


def _ray() -> Any:
    """Ray takes a second to import: only what needs it waits for it."""
    return importlib.import_module("rekindle.supervisors.ray_cluster")


def main() -> None:
    """Run a command; an error of ours is one line, and exit code 1."""
    logging.basicConfig(format="%(message)s")
    try:
        cli()
    except RekindleError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(FAILED) from error


if __name__ == "__main__":
    main()
