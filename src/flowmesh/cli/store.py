"""`flowmesh store`: bytes by digest, and the care of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmesh.cli.options import App, Commands, service
from flowmesh.cli.output import emit, say, size

if TYPE_CHECKING:
    from flowmesh.wire import StoreReport

_TO = click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False),
                   help="Write here, not to standard output.")  # fmt: skip


@click.group(cls=Commands)
def store() -> None:
    """Get and put bytes by digest; check the store and clean it up.

    Exit status: 0, 1 damage was found, 2 no such digest, 3 the service cannot be reached.

    \b
    Example: flowmesh store verify
    """


@store.command()
@click.argument("digest")
@_TO
@service
def get(app: App, digest: str, file: Path | None) -> None:
    """Print the bytes of DIGEST, as they are, or write them with --to.

    Exit status: 0, 2 no such digest or not yours, 3 the service cannot be reached.

    \b
    Example: flowmesh store get sha256:.../1234 --to table.jsonl
    """
    if app.as_json and file is None:
        raise click.UsageError("bytes are no JSON: use --to FILE with --json")
    with app.client() as client:
        data = client.store_get(digest)
    if file is None:
        sys.stdout.buffer.write(data)
        return
    file.write_bytes(data)
    if app.as_json:
        emit({"digest": digest, "file": str(file), "size_bytes": len(data)})
    else:
        say(f"{file}: {size(len(data))}")


@store.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@service
def put(app: App, file: Path) -> None:
    """Keep the bytes of FILE and print their digest.

    Exit status: 0, 2 no such file, 3 the service cannot be reached.

    \b
    Example: flowmesh store put prompts.jsonl
    """
    with app.client() as client:
        digest = client.store_put(file)
    if app.as_json:
        emit({"digest": str(digest), "size_bytes": digest.size_bytes})
    else:
        say(str(digest))


@store.command()
@service
def verify(app: App) -> None:
    """Read every blob. A damaged one is set aside: what needs it makes it again.

    Exit status: 0 all is sound, 1 damage was found, 3 the service cannot be reached.

    \b
    Example: flowmesh store verify
    """
    with app.client() as client:
        report = client.store_verify()
    if app.as_json:
        emit(report.model_dump(mode="json"))
    else:
        for digest in report.bad:
            say(f"damaged: {digest}")
        say(f"{report.blobs} blobs, {size(report.size_bytes)}, {len(report.bad)} damaged")
    click.get_current_context().exit(1 if report.bad else 0)


@store.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--grace", default=3600, show_default=True, type=click.IntRange(min=300),
              help="Seconds for which what is new is left alone.")  # fmt: skip
@service
def gc(app: App, dry_run: bool, grace: int) -> None:
    """Remove blobs that no run, result or model needs.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh store gc --dry-run
    """
    with app.client() as client:
        report = client.store_gc(dry_run=dry_run, grace_s=grace)
    if app.as_json:
        emit(report.model_dump(mode="json"))
    else:
        _tell(report)


def _tell(report: "StoreReport") -> None:
    for digest in report.removed:
        say(digest)
    done = "would be removed" if report.dry_run else "removed"
    say(
        f"{len(report.removed)} of {report.blobs} blobs {done}, "
        f"{size(report.removed_bytes)} of {size(report.size_bytes)}"
    )
