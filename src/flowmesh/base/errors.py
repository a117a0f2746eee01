"""Every error a caller can see, in one tree.

* FlowMeshError
  + SpecError            the request is wrong; change it (exit code 2)
  + NotFound             no such run, output, digest, worker or model (exit code 2)
  + AccessDenied         no token, or not yours (exit code 2)
  + Conflict             the same key, another request (exit code 2)
  + StoreError           bytes could not be read or written
    - StoreInUse         another process has it
    - StoreFull          the store has no room for more
    - BlobMissing        the store does not hold this digest
    - DigestMismatch     a copy is damaged; it is set aside, never returned
  + ProviderError        machines cannot be rented, listed or given back just now
    - LaunchRefused      this one cannot be rented; nothing was launched
  + Unreachable          the service does not answer (exit code 3)
  + LimitExceeded        a documented limit; the message names it
  + QuotaExceeded        more than the tenant may use here (exit code 2)

A task's failure is none of these: it is a record, see `core/records.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from flowmesh.base.digest import Digest


class FlowMeshError(Exception):
    """Base of the tree. `code` is stable API; the message is for people."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request: what, where, and what would have been right.

    `line` and `column` count from 1; `line` 0 means that the place has no line.
    `path` is the place in the document, as `steps.judge.prompt`.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}" + (f":{self.column}" if self.column else "")
        words = [place + ":" if place else "", self.path + ":" if self.path else "", self.message]
        return " ".join(word for word in words if word)


class SpecError(FlowMeshError):
    """The request is wrong. Carries every problem found, at least one."""

    code = "invalid_spec"
    http_status = 422
    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        assert problems, "a SpecError needs a problem"
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class NotFound(FlowMeshError):
    code = "not_found"
    http_status = 404
    exit_code = 2


class AccessDenied(FlowMeshError):
    code = "access_denied"
    http_status = 401
    exit_code = 2


class Conflict(FlowMeshError):
    code = "conflict"
    http_status = 409
    exit_code = 2


class LimitExceeded(FlowMeshError):
    code = "limit_exceeded"
    http_status = 413
    exit_code = 2


class QuotaExceeded(FlowMeshError):
    code = "quota_exceeded"
    http_status = 429
    exit_code = 2


class Unreachable(FlowMeshError):
    code = "unreachable"
    http_status = 503
    exit_code = 3
    retryable = True


class StoreError(FlowMeshError):
    code = "store"
    http_status = 502


class StoreInUse(StoreError):
    """Another process has the store, and only one may."""

    code = "store_in_use"


class StoreFull(StoreError):
    """The store has no room for more; to try again at once would not help."""

    code = "store_full"
    http_status = 507


class BlobMissing(StoreError):
    """The store does not hold the bytes of this digest."""

    code = "blob_missing"
    http_status = 404

    def __init__(self, digest: Digest | str, source: str) -> None:
        super().__init__(f"{source} holds no blob {digest}; put it again, or re-run what made it")
        self.digest, self.source = digest, source


class DigestMismatch(StoreError):
    """Bytes from a store do not hash to the digest asked for."""

    code = "digest_mismatch"
    retryable = True

    def __init__(self, *, want: Digest, got: Digest, source: str) -> None:
        super().__init__(f"{source} returned {got} for {want}; the copy is damaged and set aside")
        self.want, self.got, self.source = want, got, source


class ProviderError(FlowMeshError):
    """A provider of machines failed, or did not answer: what was asked may have been done."""

    code = "provider_failed"
    http_status = 502
    retryable = True


class LaunchRefused(ProviderError):
    """A machine cannot be rented, and none was: its offer is gone, or a quota is used up."""

    code = "launch_refused"
    retryable = False
