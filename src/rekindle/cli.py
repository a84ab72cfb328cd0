"""The command line. Here: `up`, `down`, `state`, `gateway`, and what the exit codes mean; in `operating`: everything for operators.

`up` and `down` speak to Ray, `state` and `projection` (in `viewing`) read the log, `gateway` serves HTTP, all others ask the
running application's leader over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import signal
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from rekindle.actors import BadRequest, ConnectFailed, DeadlineExceeded, OutcomeUnknown, Rejected, TokenRefused
from rekindle.events import LogUnavailable, RekindleError, TopicMissing
from rekindle.operating import AppOption, LogOption, commands
from rekindle.supervisors import DeclarationError, load
from rekindle.supervisors.hosting import Application
from rekindle.up import as_json, create_topics, launch_of, lines_of, state_of
from rekindle.viewing import projections

GATEWAY: Final = "127.0.0.1:8080"
UP_MAX_S: Final = 120.0
FAILED: Final = 1
USAGE: Final = 2
NOT_REACHABLE: Final = 3
REFUSED: Final = 4
UNKNOWN: Final = 5

HELP: Final = """Run an application that heals itself, see what it does, and tell it what to do."""
EXIT_CODES: Final = """Exit codes:
0  it is done
1  it failed
2  it was not said rightly
3  the log, Ray, or a leader could not be reached in time; nothing was done
4  it was refused; nothing was done
5  no answer came in time; it may have been done
"""

cli = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=HELP, epilog=EXIT_CODES
)
cli.add_typer(commands)
cli.add_typer(projections, name="projection")

Target = Annotated[str, typer.Argument(help="the application, as module:app", metavar="MODULE:APP")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="the Ray cluster, host:port; default: the one this machine is part of")
]


@cli.command()
def up(
    target: Target,
    address: AddressOption = None,
    log: LogOption = None,
    local: Annotated[int, typer.Option(help="start this many Ray nodes on this machine and stay in front of them")] = 0,
    wait: Annotated[float, typer.Option(help="seconds until every shard must be served")] = UP_MAX_S,
) -> None:
    """Run an application on a Ray cluster: create its topics, start its controller, wait until every shard is served."""
    app = load(target)
    asyncio.run(create_topics(app, log))
    cluster = _ray()
    nodes = cluster.LocalNodes(local) if local else None
    try:
        if nodes is None:
            cluster.connect(address, app.name)
        else:
            nodes.connect(app.name)
        controller = cluster.start_controller(app.name, launch_of(target, app, log))
        _wait_up(app, controller, wait)
        if nodes is not None:
            typer.echo(f"{local} Ray nodes at {nodes.address}; Ctrl-C ends them")
            _wait_for_the_end()
            typer.echo(f"{app.name}: {controller.stop()}")
    finally:
        if nodes is not None:
            nodes.close()


def _wait_up(app: Application, controller: Any, seconds: float) -> None:
    served = controller.wait_up(seconds)
    typer.echo(lines_of(controller.said()))
    if not served:
        typer.echo(f"{app.name}: not every shard is served after {seconds:g} s", err=True)
        raise typer.Exit(FAILED)
    services = ", ".join(f"{s.name} ({s.shards} shards, {s.instances} instances)" for s in app.services)
    typer.echo(f"{app.name} is up: {services}")


def _wait_for_the_end() -> None:
    """Until somebody asks this process to end, in either of the two usual ways."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


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
    app: AppOption,
    offset: Annotated[
        int | None, typer.Option(help="the state after this offset of the shard's log; default: now")
    ] = None,
    log: LogOption = None,
) -> None:
    """Print an entity's state, read from the log."""
    typer.echo(as_json(asyncio.run(state_of(app, entity, key, offset, log))))


@cli.command()
def gateway(
    app: AppOption,
    bind: Annotated[
        str, typer.Option(help="where to listen; beyond loopback it takes REKINDLE_GATEWAY_TOKEN")
    ] = GATEWAY,
    log: LogOption = None,
) -> None:
    """Serve an application over HTTP. Any number of gateways may run; none keeps anything."""
    importlib.import_module("rekindle.gateway.serving").run(app, bind, log, typer.echo)


def _ray() -> Any:
    """Ray takes a second to import: only what needs it waits for it."""
    return importlib.import_module("rekindle.supervisors.ray_cluster")


def exit_code_of(error: RekindleError) -> int:
    """What the exit code of a command says of this error."""
    match error:
        case DeclarationError():
            return USAGE
        case LogUnavailable() | TopicMissing() | ConnectFailed() | DeadlineExceeded():
            return NOT_REACHABLE
        case Rejected() | BadRequest() | TokenRefused():
            return REFUSED
        case OutcomeUnknown():
            return UNKNOWN
        case _:  # by their names: only what needs Ray, or a database, imports them
            return NOT_REACHABLE if type(error).__name__ in ("RayAway", "DatabaseAway") else FAILED


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error of ours is one line."""
    logging.basicConfig(format="%(message)s")
    try:
        cli(arguments, prog_name="rekindle")
    except RekindleError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(exit_code_of(error)) from error


if __name__ == "__main__":
    main()
