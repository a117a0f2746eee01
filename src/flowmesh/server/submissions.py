"""The submissions of open runs, in memory or read again from the tables; from any thread."""

import threading
from collections import OrderedDict
from collections.abc import Mapping

from flowmesh.base.ids import RunId
from flowmesh.server.submission import Submission
from flowmesh.spec.operator import Operator
from flowmesh.stores.sqlite import Database
from flowmesh.wire import CreateRun

KEPT = 1_000


class Submissions:
    def __init__(self, database: Database, catalog: Mapping[str, Operator]) -> None:
        self._database = database
        self._catalog = catalog
        self._known: OrderedDict[RunId, Submission] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, request: CreateRun) -> Submission:
        """A new one. Raises SpecError with every problem found."""
        return Submission.of(request, self._catalog)

    def keep(self, run: RunId, submission: Submission) -> None:
        with self._lock:
            self._known[run] = submission
            if len(self._known) > KEPT:
                self._known.popitem(last=False)

    def of(self, run: RunId) -> Submission:
        """Raises SpecError where this version no longer takes the run's document."""
        with self._lock:
            known = self._known.get(run)
        if known is None:
            ((request,),) = self._database.read("SELECT request FROM runs WHERE run = ?", (run,))
            known = self.check(CreateRun.model_validate_json(request))
            self.keep(run, known)
        return known
