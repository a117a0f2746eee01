"""Requests to a real server on loopback that answers, fails, redirects and dawdles."""

import json
import threading
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.http import CONCURRENCY, HttpEngine
from flowmesh.spec.action import Action


class Server(ThreadingHTTPServer):
    """Remembers what it was asked; a path says how to answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.gate = threading.Barrier(CONCURRENCY, timeout=10)
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        with self.server.lock:
            asked = {"method": self.command, "path": self.path, "body": body}
            self.server.asked.append(asked | {"headers": dict(self.headers)})
            before = sum(one["path"] == self.path for one in self.server.asked) - 1
        getattr(self, self.path.split("/")[1])(self.path.split("/")[2:], body, before)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def echo(self, parts: list[str], body: str, before: int) -> None:
        self.say(200, json.dumps({"method": self.command, "body": body}).encode())

    def text(self, parts: list[str], body: str, before: int) -> None:
        self.say(200, "grüß".encode("latin-1"), Content_Type="text/plain; charset=latin-1")

    def status(self, parts: list[str], body: str, before: int) -> None:
        self.say(int(parts[0]), b"because")

    def flaky(self, parts: list[str], body: str, before: int) -> None:
        after = {"Retry_After": parts[2].replace("_", " ")} if len(parts) > 2 else {}
        if before < int(parts[0]):
            self.say(int(parts[1]), **after)
        else:
            self.say(200, b'{"tries":%d}' % (before + 1))

    def hangup(self, parts: list[str], body: str, before: int) -> None:
        self.close_connection = True

    def large(self, parts: list[str], body: str, before: int) -> None:
        self.say(200, b"x" * int(parts[0]))

    def slow(self, parts: list[str], body: str, before: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while not self.server.release.wait(0.02):
            self.wfile.write(b"x")

    def redirect(self, parts: list[str], body: str, before: int) -> None:
        self.say(302, Location="/".join(parts).replace("|", "/"))

    def together(self, parts: list[str], body: str, before: int) -> None:
        self.server.gate.wait()
        self.say(200, b"{}")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def works(rows: Iterable[dict[str, Any]]) -> list[Work]:
    """Tasks from parameters that are rendered already."""
    operator = catalog()["http"]
    found = []
    for n, row in enumerate(rows):
        params = operator.params.model_validate(row)
        task = operator.task(params, params.model_dump(), 0)
        found.append(Work(f"task-{n}", Action("http", 1, task, {})))
    return found


def ask_all(rows: Iterable[dict[str, Any]]) -> tuple[list[Outcome], list[float]]:
    """Outcomes in order of tasks, and the waits between tries, which pass at once."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    outcomes = HttpEngine(sleep).run(works(rows))
    return sorted(outcomes, key=lambda outcome: int(outcome.task.split("-")[1])), waits


def ask(**row: Any) -> Outcome:
    (outcome,), _ = ask_all([row])
    return outcome


def answer(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Done), outcome
    assert outcome.result.rows is not None
    (row,) = outcome.result.rows
    return row


def failure(outcome: Outcome, kind: FailureKind) -> str:
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind is kind, outcome
    return outcome.message


def test_an_answer_is_status_and_body(server: Server) -> None:
    row = answer(ask(url=f"{server.url}/echo", headers={"X-Mine": "1"}))
    assert row == {"status": 200, "body": {"method": "GET", "body": ""}}
    (asked,) = server.asked
    assert asked["headers"]["X-Mine"] == "1"
    assert "Idempotency-Key" not in asked["headers"]


def test_bodies(server: Server) -> None:
    url = f"{server.url}/echo"
    rows = [
        {"url": url, "method": "POST", "body": {"q": ["a", 1]}},
        {"url": url, "method": "PUT", "body": "plain é"},
        {"url": url, "method": "DELETE"},
    ]
    outcomes, _ = ask_all(rows)
    bodies = [answer(outcome)["body"] for outcome in outcomes]
    assert json.loads(bodies[0].pop("body")) == {"q": ["a", 1]}
    assert bodies == [
        {"method": "POST"},
        {"method": "PUT", "body": "plain é"},
        {"method": "DELETE", "body": ""},
    ]
    kinds = {asked["method"]: asked["headers"].get("Content-Type") for asked in server.asked}
    assert kinds["POST"] == "application/json"
    assert kinds["PUT"] == "text/plain; charset=utf-8"


def test_text_is_read_in_its_charset(server: Server) -> None:
    assert answer(ask(url=f"{server.url}/text", expect="text"))["body"] == "grüß"


def test_an_answer_without_body_is_null(server: Server) -> None:
    row = answer(ask(url=f"{server.url}/echo", method="HEAD"))
    assert row == {"status": 200, "body": None}


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    (outcome,), waits = ask_all([{"url": f"{server.url}/flaky/2/{status}"}])
    assert answer(outcome)["body"] == {"tries": 3}
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_waits_are_fixed_for_a_task_and_differ_between_tasks(server: Server) -> None:
    url = f"{server.url}/status/500"
    _, waits = ask_all([{"url": url}])
    assert ask_all([{"url": url}])[1] == waits
    _, both = ask_all([{"url": url}, {"url": url}])
    assert len(set(both)) == 6


@pytest.mark.parametrize(("asked", "wait"), [("7", 7.0), ("100000", 120.0), ("nonsense", None)])
def test_the_server_says_how_long_to_wait(server: Server, asked: str, wait: float | None) -> None:
    (outcome,), waits = ask_all([{"url": f"{server.url}/flaky/1/503/{asked}"}])
    assert answer(outcome)["body"] == {"tries": 2}
    assert len(waits) == 1
    assert waits[0] == wait if wait is not None else waits[0] <= 0.5


def test_the_server_may_name_a_moment(server: Server) -> None:
    past = formatdate(0, usegmt=True).replace(" ", "_")
    _, waits = ask_all([{"url": f"{server.url}/flaky/1/503/{past}"}])
    assert waits == [0.0]


def test_a_server_error_that_stays_is_transient(server: Server) -> None:
    said = failure(ask(url=f"{server.url}/status/503", retries=2), FailureKind.TRANSIENT)
    assert said == f"GET {server.url}/status/503: status 503 (after 3 tries)"
    assert len(server.asked) == 3


def test_a_refusal_is_final(server: Server) -> None:
    said = failure(ask(url=f"{server.url}/status/404"), FailureKind.INPUT)
    assert said == f"GET {server.url}/status/404: status 404: because"
    assert len(server.asked) == 1


def test_a_lost_connection_is_transient(server: Server) -> None:
    said = failure(ask(url=f"{server.url}/hangup", retries=1), FailureKind.TRANSIENT)
    assert "no answer: " in said and "(after 2 tries)" in said
    assert len(server.asked) == 2


def test_nobody_listens() -> None:
    with Server() as closed:
        url = closed.url
    assert "no answer" in failure(ask(url=url, retries=0), FailureKind.TRANSIENT)


def test_an_answer_that_drips_is_cut_off(server: Server) -> None:
    said = failure(ask(url=f"{server.url}/slow", timeout_s=0.2, retries=0), FailureKind.TRANSIENT)
    assert "no whole answer within 0.2 s (after 1 try)" in said


def test_an_answer_that_is_too_long_is_refused(server: Server) -> None:
    fits = ask(url=f"{server.url}/large/100", max_bytes=100, expect="text")
    assert answer(fits)["body"] == "x" * 100
    outcome = ask(url=f"{server.url}/large/101", max_bytes=100, expect="text")
    assert "longer than `max_bytes`: 100" in failure(outcome, FailureKind.INPUT)


def test_a_body_that_is_not_json_is_refused(server: Server) -> None:
    said = failure(ask(url=f"{server.url}/large/5"), FailureKind.INPUT)
    assert "status 200, but the body is not JSON" in said and "xxxxx" in said


def test_every_try_of_an_act_carries_one_key(server: Server) -> None:
    rows = [{"url": f"{server.url}/flaky/2/503", "method": "POST"}]
    (outcome,), _ = ask_all(rows)
    assert answer(outcome)["status"] == 200
    assert [one["headers"]["Idempotency-Key"] for one in server.asked] == ["task-0"] * 3


def test_a_key_of_ones_own_is_kept(server: Server) -> None:
    answer(ask(url=f"{server.url}/echo", method="POST", headers={"idempotency-key": "mine"}))
    keys = {name.lower(): value for name, value in server.asked[0]["headers"].items()}
    assert keys["idempotency-key"] == "mine"


def test_redirects_stay_on_the_web(server: Server) -> None:
    assert answer(ask(url=f"{server.url}/redirect/|echo"))["status"] == 200
    said = failure(ask(url=f"{server.url}/redirect/file:|||etc|passwd"), FailureKind.INPUT)
    assert "file" in said
    endless = failure(ask(url=f"{server.url}/redirect/|redirect|x"), FailureKind.INPUT)
    assert "redirects" in endless


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"url": "{{ }}ftp://example.org/"}, "must start with http:// or https://"),
        ({"url": "http://"}, "must start with http:// or https://"),
        ({"url": "http://a b/"}, "must start with http:// or https://"),
        ({"url": "http://127.0.0.1:99999/"}, "port 99999 is not within 1 to 65535"),
        ({"url": "http://127.0.0.1:x/"}, "can not be sent"),
        ({"url": "http://xn--a/"}, "can not be sent"),
        ({"url": "http://127.0.0.1/", "headers": {"X": "snow ☃"}}, "beyond ASCII"),
    ],
)
def test_what_can_not_be_sent(row: dict[str, Any], message: str) -> None:
    assert message in failure(ask(**row), FailureKind.INPUT)


def test_a_header_can_not_smuggle_another(server: Server) -> None:
    outcome = ask(url=f"{server.url}/echo", headers={"X": "a\r\nY: b"})
    assert "can not be sent" in failure(outcome, FailureKind.INPUT)
    assert server.asked == []


def test_requests_go_side_by_side_and_one_failure_stands_alone(server: Server) -> None:
    rows = [{"url": f"{server.url}/together/{n}"} for n in range(CONCURRENCY)]
    outcomes, _ = ask_all([*rows, {"url": f"{server.url}/status/404"}])
    assert [type(outcome) for outcome in outcomes] == [Done] * CONCURRENCY + [Failed]
