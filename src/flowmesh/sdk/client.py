"""The client: workflows in, runs and what they made out.

    client = Client()                       # the embedded server of ~/.flowmesh
    run = client.submit("quickstart.yaml", parameters={"samples": 2})
    run.wait()
    pairs = run.output("pairs").to_pandas()

Calls block. A client may be used from one thread at a time.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from flowmesh.base.digest import Digest
from flowmesh.base.errors import DigestMismatch, NotFound, Problem, SpecError
from flowmesh.base.names import NAME_RULE, name_and_tag
from flowmesh.cards import ModelCard
from flowmesh.planning import EstimateView, PlanView, RunExplanation, TaskExplanation
from flowmesh.sdk import explaining
from flowmesh.sdk.embedded import Embedded
from flowmesh.sdk.limits import Limits
from flowmesh.sdk.models import ModelImporter, Note, check_source, title
from flowmesh.sdk.offers import offers_in
from flowmesh.sdk.prepare import AnyWorkflow, Prepared, prepare
from flowmesh.sdk.runs import Run
from flowmesh.sdk.transport import Transport, address
from flowmesh.sdk.trees import check_place, fetch_tree
from flowmesh.spec.workflow import REGISTERED_PATTERN, ModelSource
from flowmesh.stores.files import FileStore
from flowmesh.wire import (
    ArtifactView,
    CreateRun,
    Digests,
    LineageNode,
    ModelEntry,
    ModelView,
    NameModel,
    RunPage,
    RunView,
    StoreReport,
    TenantView,
    WorkerView,
)

DEFAULT_HOME = Path.home() / ".flowmesh"
#: To read the whole store takes minutes where it is large.
_STORE_CARE_S = 3600.0
#: Digests of one question.
_ASK_LIMIT = 10_000

#: Names of tenants, and keys, as `wire` has them.
_NAME = re.compile(REGISTERED_PATTERN)
_HASH = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9._-]{1,100}")

_WORKERS = TypeAdapter(list[WorkerView])
_ESTIMATES = TypeAdapter(list[EstimateView])
_MODELS = TypeAdapter(list[ModelView])
_TENANTS = TypeAdapter(list[TenantView])
_HISTORY = TypeAdapter(list[ModelEntry])


def _silent(note: str) -> None:
    pass


class Client:
    """One tenant at one server.

    Args:
        server: address of a server; without it, the embedded server of `home`, which is
            started when it is first needed and leaves by itself.
        token: what a named server asks for.
        home: where the embedded server, logs and the index of converted models live.
        workers: of an embedded server that has to be started.
        patience_s: how long a server that stops answering is waited for; one that never
            answered is given up after 10 s.
        note: told, in words, about what takes long.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        tenant: str = "default",
        token: str | None = None,
        home: str | Path | None = None,
        workers: int = 1,
        patience_s: float = 60.0,
        note: Note = _silent,
    ) -> None:
        if not _NAME.fullmatch(tenant):
            raise SpecError(Problem(f"{tenant!r:.100} is no name for a tenant; {NAME_RULE}"))
        self.home = Path(home or DEFAULT_HOME).expanduser().absolute()
        self.tenant = tenant
        self._note = note
        self._embedded = Embedded(self.home, workers)
        self._named = address(server, token) if server else None
        named = self._named
        locate = self._embedded.locate if named is None else lambda: named
        self.transport = Transport(locate, tenant, patience_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; an embedded server leaves once nobody uses it."""
        self.transport.close()

    @property
    def is_embedded(self) -> bool:
        """Whether the server leaves without clients; one of `flowmesh up` stays."""
        return self._named is None and self._embedded.is_attended()

    # Runs

    def submit(
        self,
        workflow: AnyWorkflow,
        *,
        inputs: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> Run:
        """Check a workflow, send what the server lacks, and start a run of it.

        Args:
            workflow: a file, a document as plain data, or a workflow made by the builder.
            inputs: for table inputs a path, a list of dicts or a data frame; for files a path.
            parameters: values of plain inputs.
            key: a run of the same tenant and key is not started twice.
            limits: a deadline, a budget, an objective; they replace the workflow's.

        Raises:
            SpecError: with every problem found; nothing has been stored or started.
            Unreachable: no server answers.
        """
        prepared = prepare(workflow, inputs=inputs, parameters=parameters)
        return self.start(prepared, key=key, limits=limits)

    def start(
        self, prepared: Prepared, *, key: str | None = None, limits: Limits | None = None
    ) -> Run:
        """Start a run of what `prepare` has checked."""
        request = self._request(prepared, key, limits)
        answer = self.transport.request("POST", "/v1/runs", body=request)
        return Run(self, RunView.model_validate_json(answer))

    def _request(self, prepared: Prepared, key: str | None, limits: Limits | None) -> CreateRun:
        """What starts a run; all that it names is in the server's store."""
        if key is not None and not _KEY.fullmatch(key):
            raise SpecError(Problem(f"{key!r:.100} is no key: 1 to 100 letters, digits, . _ -"))
        request = CreateRun(
            document=prepared.document,
            file=prepared.file,
            tenant=self.tenant,
            key=key or secrets.token_hex(16),
            inputs=dict(prepared.inputs),
            parameters=dict(prepared.parameters),
            models=self._models_of(prepared),
            files=dict(prepared.files),
            **(limits or Limits()).fields(),
        )
        for digest in sorted(self.missing(prepared.blobs)):
            self.upload(digest, prepared.blobs[digest])
        return request

    def plan(
        self,
        workflow: AnyWorkflow,
        *,
        inputs: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        limits: Limits | None = None,
        offers: str | Path | Sequence[Mapping[str, Any]] = (),
    ) -> PlanView:
        """What a run would reuse, do and take; nothing is started.

        Args:
            workflow: and `inputs`, `parameters`, `key`, `limits`: as for `submit`.
            offers: machines to plan on besides today's fleet: a YAML file, or plain data as
                `planning.OfferBody` has it.

        Raises SpecError with every problem found, Unreachable.
        """
        prepared = prepare(workflow, inputs=inputs, parameters=parameters)
        return self.look_ahead(prepared, key=key, limits=limits, offers=offers)

    def look_ahead(
        self,
        prepared: Prepared,
        *,
        key: str | None = None,
        limits: Limits | None = None,
        offers: str | Path | Sequence[Mapping[str, Any]] = (),
    ) -> PlanView:
        """`plan`, of what `prepare` has checked."""
        machines = offers_in(offers) if offers else []
        return explaining.look_ahead(self, self._request(prepared, key, limits), machines)

    def explain_run(self, run: str) -> RunExplanation:
        """Where a run's batches went, when and why. Raises NotFound."""
        return explaining.explain_run(self, run)

    def explain_task(self, task: str) -> TaskExplanation:
        """Why a task ran, or is to run, where and when it does.

        Args:
            task: the beginning of its fingerprint, or `RUN:STEP`, or `RUN:STEP:ROW[.SAMPLE]`.

        Raises NotFound, SpecError.
        """
        return explaining.explain_task(self, task)

    def run(self, run: str) -> Run:
        """A run by its id. Raises NotFound."""
        answer = self.transport.request("GET", f"/v1/runs/{_segment(run)}")
        return Run(self, RunView.model_validate_json(answer))

    def runs(
        self, *, limit: int = 50, after: str | None = None, all_tenants: bool = False
    ) -> RunPage:
        """The tenant's runs, newest first; `RunPage.next` goes into `after` for the next page."""
        params: dict[str, Any] = {"limit": limit}
        if after is not None:
            params["after"] = after
        if not all_tenants:
            params["tenant"] = self.tenant
        answer = self.transport.request("GET", "/v1/runs", params=params)
        return RunPage.model_validate_json(answer)

    # What there is

    def workers(self) -> list[WorkerView]:
        return _WORKERS.validate_json(self.transport.request("GET", "/v1/workers"))

    def estimates(self) -> list[EstimateView]:
        """What was learnt of how long work takes, by batch key and kind of machine."""
        return _ESTIMATES.validate_json(self.transport.request("GET", "/v1/estimates"))

    def tenants(self) -> list[TenantView]:
        """Every tenant, its weight and quotas, and what it uses of them."""
        return _TENANTS.validate_json(self.transport.request("GET", "/v1/tenants"))

    def models(self) -> list[ModelView]:
        return _MODELS.validate_json(self.transport.request("GET", "/v1/models"))

    def model(self, name: str) -> ModelView:
        """What `NAME` or `NAME@TAG` stands for. Raises NotFound, with the nearest name."""
        found, tag = _split(name)
        answer = self.transport.request("GET", f"/v1/models/{found}", params={"tag": tag})
        return ModelView.model_validate_json(answer)

    def add_model(self, name: str, source: ModelSource, *, shared: bool = False) -> ModelView:
        """Let `NAME` or `NAME@TAG` stand for a model, converting it if need be.

        Args:
            shared: for all tenants, who find it where they have no such name of their own.

        Raises SpecError, NotFound.
        """
        _split(name)
        if fault := check_source(source, Path()):
            raise SpecError(Problem(fault[1]))
        tree = self._tree(source, Path())
        return self._name_model(name, tree.digest, title(source), shared)

    def tag_model(self, what: str, name: str, *, shared: bool = False) -> ModelView:
        """Let `NAME@TAG` stand for what is there: `RUN:OUTPUT`, `NAME[@TAG]` or a digest.

        What the tag stood for before stays in its history. Raises SpecError, NotFound.
        """
        return self._name_model(name, what, "", shared)

    def _name_model(self, name: str, what: str, source: str, shared: bool) -> ModelView:
        found, tag = _split(name)
        body = NameModel(what=what, tag=tag, source=source, shared=shared)
        answer = self.transport.request("PUT", f"/v1/models/{found}", body=body)
        return ModelView.model_validate_json(answer)

    def remove_model(self, name: str, *, shared: bool = False) -> list[ModelView]:
        """Forget `NAME@TAG`, or all tags of `NAME`; files that nothing else needs go with the
        next collection. Gives what the tags stood for."""
        found, tag = _split(name)
        params = {"shared": json.dumps(shared)} | ({"tag": tag} if "@" in name else {})
        answer = self.transport.request("DELETE", f"/v1/models/{found}", params=params)
        return _MODELS.validate_json(answer)

    def model_card(self, what: str) -> ModelCard:
        """All that is known of weights: `what` is `NAME[@TAG]`, `RUN:OUTPUT` or a digest."""
        answer = self.transport.request("GET", "/v1/model-card", params={"what": what})
        return ModelCard.model_validate_json(answer)

    def model_history(self, name: str) -> list[ModelEntry]:
        """Every move of the tags of `NAME`, the newest first; none for an unknown name."""
        found, _ = _split(name)
        answer = self.transport.request("GET", f"/v1/models/{found}/history")
        return _HISTORY.validate_json(answer)

    def download_model(self, what: str, directory: str | Path) -> Path:
        """Write weights as plain files that other programs load; verified.

        Raises SpecError if the directory holds something, NotFound.
        """
        place = Path(directory)
        check_place(place)  # before anything is asked
        fetch_tree(self, Digest.parse(self.model_card(what).digest), place)
        return place

    def lineage(
        self,
        *,
        digest: str | None = None,
        run: str | None = None,
        output: str | None = None,
        row: int | None = None,
        direction: Literal["up", "down"] = "up",
    ) -> LineageNode:
        """From what an artifact was made (`up`), or what was made from it (`down`).

        Names it by `digest`, or by `run` and `output`; with `row`, that row of it, from 0.
        """
        asked = {"digest": digest, "run": run, "output": output, "row": row, "direction": direction}
        params = {name: value for name, value in asked.items() if value is not None}
        answer = self.transport.request("GET", "/v1/lineage", params=params)
        return LineageNode.model_validate_json(answer)

    # The store

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of the digests that the server's store lacks."""
        ordered, lacking = sorted(digests), set[Digest]()
        for start in range(0, len(ordered), _ASK_LIMIT):
            asked = Digests(digests=[str(one) for one in ordered[start : start + _ASK_LIMIT]])
            answer = self.transport.request("POST", "/v1/blobs/missing", body=asked)
            lacking |= {Digest.parse(one) for one in Digests.model_validate_json(answer).digests}
        return lacking

    def upload(self, digest: Digest, content: bytes | Path) -> None:
        self.transport.request("PUT", f"/v1/blobs/{digest.hash}", body=content, timeout_s=600.0)

    def store_put(self, content: bytes | Path) -> Digest:
        """Keep bytes, or those of a file; nothing names them, so a collection may take them."""
        digest = Digest.of(content if isinstance(content, bytes) else content.read_bytes())
        if self.missing([digest]):
            self.upload(digest, content)
        return digest

    def store_get(self, digest: Digest | str) -> bytes:
        """The bytes of a digest, or of a hash alone. Raises NotFound, DigestMismatch."""
        if isinstance(digest, str) and _HASH.fullmatch(digest):
            wanted, path, params = None, f"/v1/blobs/{digest}", dict[str, int]()
        else:
            wanted = digest if isinstance(digest, Digest) else _parsed(digest)
            path, params = f"/v1/blobs/{wanted.hash}", {"size": wanted.size_bytes}
        data = self.transport.request("GET", path, params=params, timeout_s=600.0)
        got = Digest.of(data)
        if wanted is not None and got != wanted:
            raise DigestMismatch(want=wanted, got=got, source="the server")
        return data

    def store_save(self, digest: Digest, to: Path) -> None:
        """Write the bytes of a digest to a file. Raises NotFound, DigestMismatch."""
        path, params = f"/v1/blobs/{digest.hash}", {"size": digest.size_bytes}
        got = self.transport.download(path, to, params=params, timeout_s=600.0)
        if got != digest:
            raise DigestMismatch(want=digest, got=got, source="the server")

    def store_verify(self) -> StoreReport:
        """Read every blob of the store; damaged ones are set aside and named."""
        answer = self.transport.request("POST", "/v1/store/verify", timeout_s=_STORE_CARE_S)
        return StoreReport.model_validate_json(answer)

    def store_gc(self, *, dry_run: bool = False, grace_s: int = 3600) -> StoreReport:
        """Remove blobs that nothing needs and that are older than the grace period."""
        params = {"dry_run": json.dumps(dry_run), "grace_s": grace_s}
        answer = self.transport.request(
            "POST", "/v1/store/gc", params=params, timeout_s=_STORE_CARE_S
        )
        return StoreReport.model_validate_json(answer)

    def local_store(self) -> Path | None:
        """The directory of the server's store, if it is the one of our home.

        A server with a token keeps tenants apart: there, what is sent to it says whose it is.
        """
        if self._named is None:
            return self.home / "store"
        ours = self._named.token is None and self._embedded.serves(self._named.url)
        return self.home / "store" if ours else None

    # Models

    def _models_of(self, prepared: Prepared) -> dict[str, ArtifactView]:
        found: dict[str, ArtifactView] = {}
        for alias, source in prepared.graph.models.items():
            try:
                found[alias] = self._tree(source, prepared.base)
            except (SpecError, NotFound) as error:
                raise SpecError(prepared.model_problem(str(error), alias)) from None
        return found

    def _tree(self, source: ModelSource, base: Path) -> ArtifactView:
        """The artifact of a source. Raises SpecError, NotFound."""
        own = self.local_store()
        destination = self if own is None else _OwnStore(own)
        if source.name is not None:
            if self._named is None and not (self.home / "journal.db").exists():
                raise NotFound(f"no model is called {source.name!r}; there is none in {self.home}")
            return self.model(source.name).artifact
        if source.digest is not None:
            if destination.missing([Digest.parse(source.digest)]):
                raise NotFound(f"the store holds no tree {source.digest}")
            return ArtifactView(kind="tree", digest=source.digest)
        known = ModelImporter(self.home, self._note).tree(source, base, destination)
        return ArtifactView(kind="tree", digest=known.digest)


class _OwnStore:
    """The store of our own server, which may be written to without asking it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return (
            set(digests) - FileStore(self._root).has(digests) if self._root.exists() else {*digests}
        )

    def upload(self, digest: Digest, content: bytes | Path) -> None:
        FileStore(self._root).put(content, digest)

    def local_store(self) -> Path:
        return self._root


def _segment(text: str) -> str:
    """A name that goes into an address. Raises NotFound for what can be no name."""
    if not text or not all(one.isalnum() or one in "._-" for one in text) or not text.isascii():
        raise NotFound(f"{text[:80]!r} is the name of nothing here")
    return text


def _split(name: str) -> tuple[str, str]:
    try:
        return name_and_tag(name)
    except ValueError as error:
        raise SpecError(Problem(str(error))) from None


def _parsed(digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except ValueError as error:
        raise SpecError(Problem(str(error))) from None
