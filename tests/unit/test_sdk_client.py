"""The client against the real server, in this process; and a transport against a bad network."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import uvicorn

from flowmesh import Client, NotFound, SpecError, Unreachable
from flowmesh.base.digest import Digest
from flowmesh.base.errors import AccessDenied
from flowmesh.sdk.transport import Address, NoServer, Transport, address
from flowmesh.server.app import ServerSettings, create_app
from flowmesh.spec.workflow import ModelSource
from flowmesh.stores.trees import Manifest, TreeFile

FLOW = {
    "flowmesh": 1,
    "name": "demo",
    "inputs": {"prompts": {"type": "table"}},
    "steps": {"text": {"op": "render", "rows": "${inputs.prompts}", "template": "{{ q }}!"}},
    "outputs": {"text": "${steps.text}"},
}
ROWS = [{"q": "a"}, {"q": "b"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server without workers, which wants a token."""
    settings = ServerSettings(home=tmp_path_factory.mktemp("home"), token="secret", workers=0)
    config = uvicorn.Config(create_app(settings), port=0, log_level="error", ws="none")
    running = uvicorn.Server(config)
    started = threading.Event()
    startup = running.startup

    async def announced(sockets: list[object] | None = None) -> None:
        await startup(sockets)  # type: ignore[arg-type]
        started.set()

    running.startup = announced  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=running.run)
    thread.start()
    assert started.wait(30)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(server: str, tmp_path: Path) -> Iterator[Client]:
    with Client(server, token="secret", home=tmp_path / "unused") as one:
        yield one
    assert not (tmp_path / "unused").exists()


def test_a_run_from_submission_to_its_end(client: Client) -> None:
    run = client.submit(FLOW, inputs={"prompts": ROWS}, key="once")
    again = client.submit(FLOW, inputs={"prompts": ROWS}, key="once")
    assert again.id == run.id
    views = run.watch()
    assert next(views).status == "running"
    assert run.cancel().status == "cancelled"
    assert [view.status for view in views][-1] == "cancelled"
    assert run.wait().status == "cancelled"
    assert run.id in [view.run for view in client.runs().runs]
    with pytest.raises(NotFound, match="no output 'text'; it is cancelled"):
        run.output("text")


def test_a_wrong_request_is_refused_with_every_problem(client: Client) -> None:
    before = client.runs().runs
    with pytest.raises(SpecError, match="did you mean 'render'"):
        client.submit({**FLOW, "steps": {"text": {"op": "rende"}}}, inputs={"prompts": ROWS})
    with pytest.raises(SpecError, match="no name for a tenant"):
        Client(tenant="../x")
    with pytest.raises(SpecError, match="no key"):
        client.submit(FLOW, inputs={"prompts": ROWS}, key="a b")
    with pytest.raises(SpecError, match="not the address of a server"):
        Client("ftp://x")
    assert client.runs().runs == before


def test_bytes_come_back_as_they_went(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0" * 100_000)
    for content in (b"bytes", tmp_path / "file"):
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = client.store_put(content)
        assert digest == Digest.of(data)
        assert client.store_get(digest) == client.store_get(digest.hash) == data
        assert client.missing([digest]) == set()
    assert client.store_verify().bad == []
    assert client.store_gc(dry_run=True).dry_run
    with pytest.raises(NotFound):
        client.store_get(Digest.of(b"never put"))
    with pytest.raises(SpecError, match="is not a digest"):
        client.store_get("sha256:abc/1")


def test_models_by_name(client: Client) -> None:
    file = TreeFile("config.json", client.store_put(b"{}"))
    digest = client.store_put(Manifest((file,)).encode())
    assert client.models() == []
    made = client.add_model("smol", ModelSource(digest=str(digest)))
    assert client.model("smol").artifact == made.artifact
    with pytest.raises(NotFound, match="did you mean 'smol'"):
        client.model("smoll")
    assert [one.artifact for one in client.remove_model("smol")] == [made.artifact]
    assert client.models() == []
    with pytest.raises(SpecError, match="is not installed"):
        client.add_model("x", ModelSource(package="no-such-package"))


def test_an_adapter_of_ones_own_gets_a_name_and_comes_back(server: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with Client(server, token="secret", home=str(tmp_path / "home")) as one:
        made = one.add_model("mine", ModelSource(path=str(folder)))
        assert made.kind == "adapter"
        back = one.download_model("mine", tmp_path / "back")
        again = one.add_model("mine@again", ModelSource(path=str(back)))
        assert again.artifact == made.artifact
        one.remove_model("mine")


def test_a_home_may_be_text(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:1", home=str(tmp_path)) as one:
        assert one.home == tmp_path
    with Client("http://127.0.0.1:1", home="~/flow") as one:
        assert one.home == Path.home() / "flow"


def test_a_model_that_the_server_does_not_know_is_told_at_its_line(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(
        "flowmesh: 1\ninputs:\n  p: {type: table}\nmodels:\n  chat: {name: smol}\nsteps:\n"
        '  s: {op: generate, rows: "${inputs.p}", model: "${models.chat}", prompt: hi}\n'
    )
    with pytest.raises(SpecError, match=r"flow.yaml:5:3: models.chat: no model is called 'smol'"):
        client.submit(path, inputs={"p": ROWS})


def test_a_token_is_wanted(server: str) -> None:
    with Client(server, token="wrong") as stranger, pytest.raises(AccessDenied, match="token"):
        stranger.runs()


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


class Flaky(BaseHTTPRequestHandler):
    """Answers as it is told: with a status, or not at all."""

    plan: list[int]

    def do_GET(self) -> None:
        status = self.plan.pop(0) if self.plan else 200
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[tuple[str, list[int]]]:
    """An address, and what the next requests to it come to."""
    plan: list[int] = []
    handler = type("Planned", (Flaky,), {"plan": plan})
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", plan
        running.shutdown()
        thread.join()


def transport(url: str, time: FakeTime, patience_s: float = 60.0) -> Transport:
    return Transport(
        lambda: Address(url), "t", patience_s, now_s=lambda: time.at_s, sleep=time.sleep
    )


def test_a_restart_is_waited_out(flaky: tuple[str, list[int]]) -> None:
    url, plan = flaky
    time = FakeTime()
    one = transport(url, time)
    assert one.request("GET", "/") == b"{}"
    plan[:] = [0, 503, 502, 0, 503, 0]
    assert one.request("GET", "/") == b"{}"
    assert 0 < time.at_s < 10
    one.close()


def test_patience_ends_sooner_with_a_server_never_seen(flaky: tuple[str, list[int]]) -> None:
    url, plan = flaky
    unseen = FakeTime()
    nowhere = transport("http://127.0.0.1:1", unseen)
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:1 does not answer .*flowmesh up"):
        nowhere.request("GET", "/")
    assert 5 < unseen.at_s <= 10

    seen = FakeTime()
    one = transport(url, seen)
    one.request("GET", "/")
    plan[:] = [503] * 1000
    with pytest.raises(Unreachable, match="not ready"):
        one.request("GET", "/")
    assert 50 < seen.at_s <= 60
    one.close()


def test_the_server_is_looked_for_again_after_each_failure(
    flaky: tuple[str, list[int]],
) -> None:
    """It may come back on another port."""
    time = FakeTime()
    places = [Address("http://127.0.0.1:1"), Address("http://127.0.0.1:2"), Address(flaky[0])]
    one = Transport(lambda: places.pop(0), "t", now_s=lambda: time.at_s, sleep=time.sleep)
    assert one.request("GET", "/") == b"{}"
    assert places == []
    one.close()


def test_a_server_that_cannot_be_started_is_not_tried_again() -> None:
    tries = []

    def locate() -> Address:
        tries.append(1)
        raise NoServer("it ended as it started")

    with pytest.raises(NoServer):
        Transport(locate, "t").request("GET", "/")
    assert len(tries) == 1


def test_what_answers_but_is_no_server_of_ours(flaky: tuple[str, list[int]]) -> None:
    url, plan = flaky
    plan[:] = [404] * 1000
    one = transport(url, FakeTime())
    with pytest.raises(Unreachable, match="not as a FlowMesh server"):
        one.request("GET", "/")
    one.close()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a:1/", "http://a:1"),
        ("a:1", "http://a:1"),
        ("https://a/flow", "https://a/flow"),
    ],
)
def test_addresses_as_people_write_them(text: str, url: str) -> None:
    assert address(text, None).url == url
