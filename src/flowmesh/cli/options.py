"""Options that commands share, and what they add up to.

Modules with commands import what they run within the command: `flowmesh --help` must not
wait for a database, an HTTP client and a server.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmesh.base.nearest import nearest
from flowmesh.base.sizes import size_bytes
from flowmesh.cli.output import note

if TYPE_CHECKING:
    from flowmesh.sdk.client import Client

DEFAULT_HOME = "~/.flowmesh"


@dataclass(slots=True)
class App:
    """Who asks, where, and in which form the answer goes out."""

    home: Path
    as_json: bool = False
    server: str | None = None
    token: str | None = None
    tenant: str = "default"
    #: Said when the user interrupts: what becomes of the work.
    farewell: str = "interrupted"

    def client(self, workers: int = 1) -> "Client":
        from flowmesh.sdk.client import Client

        return Client(
            self.server,
            tenant=self.tenant,
            token=self.token,
            home=self.home,
            workers=workers,
            note=note,
        )


class Commands(click.Group):
    """A group that knows the nearest right name of a command, and may have a default one."""

    def __init__(self, *arguments: Any, default: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_own = bool(args) and (not args[0].startswith("-") or args[0] in ("-h", "--help"))
        if self._default and not is_own:
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            guess = nearest(args[0], self.commands)
            raise click.UsageError(f"there is no command {args[0]!r}{guess}", ctx)
        return super().resolve_command(ctx, args)


_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
WEIGHT_LIMIT = 1000


class Size(click.ParamType[int, str | int]):
    """Bytes: a number, or one with a unit: 512MB, 4GiB; at least `least` of them."""

    name = "size"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            found = size_bytes(value)
        except ValueError as error:
            self.fail(str(error))
        if found < self._least:
            least = f"expected at least {self._least // 10**6} MB, as 4GB"
            self.fail(f"{value!r} is {found} bytes, which hold nothing: {least}", param, ctx)
        return found


class Finite(click.FloatRange):
    """A number within bounds, and a number: neither nan nor inf."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


class Weight(click.ParamType[tuple[str, float], str | tuple[str, float]]):
    """A tenant and its weight: alice=2."""

    name = "tenant=number"

    def convert(
        self,
        value: str | tuple[str, float],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        tenant, _, number = value.partition("=")
        if not tenant or not _NUMBER.fullmatch(number) or not 0 < float(number) <= WEIGHT_LIMIT:
            self.fail(f"{value!r} is no weight; expected a tenant and a number, as alice=2")
        return tenant, float(number)


_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_HOME = click.option(
    "--home",
    envvar="FLOWMESH_HOME",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_HOME,
    show_default=True,
    help="Directory of the embedded server, its store and logs.",
)
_TENANT = click.option(
    "--tenant",
    envvar="FLOWMESH_TENANT",
    default="default",
    show_default=True,
    help="Whose work it is.",
)
_SERVER = click.option(
    "--server", envvar="FLOWMESH_SERVER", help="Address of a server; else the embedded one."
)
_TOKEN = click.option(
    "--token", envvar="FLOWMESH_TOKEN", help="Access token, where the server wants one."
)

_Command = Callable[..., None]


def service(command: _Command) -> _Command:
    """A command that talks to a server."""
    return _with([_JSON, _SERVER, _TOKEN, _TENANT, _HOME], command)


def local(command: _Command) -> _Command:
    """A command that talks to none."""
    return _with([_JSON], command)


def process(command: _Command) -> _Command:
    """A command that is a server or a worker itself."""
    return _with([_TOKEN, _HOME], command)


def _with(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    @wraps(command)
    @click.pass_obj
    def invoke(app: App, /, **arguments: Any) -> None:
        for name in ("as_json", "server", "token", "tenant", "home"):
            if name in arguments:
                value = arguments.pop(name)
                setattr(app, name, value.expanduser() if isinstance(value, Path) else value)
        command(app, **arguments)

    wrapped: _Command = invoke
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`name=value` texts of a repeated option. Raises click.UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} takes name=value, found {text!r}")
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice")
        found[name] = value
    return found
