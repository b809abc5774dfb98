"""Loading passages into an index.

Every passage is sent as "create the document of this id", which does nothing where there is one already. So whatever was
cut off, here or there, is mended by sending it again: what the server has acknowledged is on its disk and stays as it is,
and the rest is added.

Where an index has documents before, the passages are looked up first and those that are there are skipped, until as many
have been met as there were; the rest is sent unseen. Title and text are compared, so that an id that stands for another
passage is reported and not taken for the same one.

An index is marked as incomplete from the first document to the end of loading, and nobody can open it meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from types import ModuleType
from typing import Any

import elasticsearch

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic import form
from sandboxes.search.elastic.connection import Connection, read_address
from sandboxes.search.elastic.server import PassingFault, RequestTooLarge, Server, pauses, reason_of
from sandboxes.search.index import Passage

logger = logging.getLogger(__name__)

_REQUEST_SECONDS = 60.0
_MERGE_SECONDS = 4 * 3600.0
_REQUEST_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class LoadReport:
    """How loading went.

    Args:
        loaded: Passages that were added.
        skipped: Passages that were there already, with the same title and text.
        failed: The id of each passage that is not there, and the reason.
    """

    loaded: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        line = f"{self.loaded} passages loaded, {self.skipped} were there already, {len(self.failed)} failed"
        examples = "; ".join(f"{id!r}: {reason}" for id, reason in self.failed[:3])
        return f"{line} ({examples}{'; ...' if len(self.failed) > 3 else ''})" if examples else line

    def __add__(self, other: LoadReport) -> LoadReport:
        return LoadReport(self.loaded + other.loaded, self.skipped + other.skipped, self.failed + other.failed)


def _silent(done: int) -> None:
    """Progress that nobody wants to see."""


def load(
    where: str,
    passages: Iterable[Passage],
    *,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    resume: bool = True,
    progress: Callable[[int], None] = _silent,
    replicas: int = 0,
    patience: float = 120.0,
    batch: int = 1000,
    requests: int = 2,
    client: ModuleType = elasticsearch,
) -> LoadReport:
    """Loads passages into an index, which is created where there is none, and goes on where an earlier call was cut off.

    Args:
        where: Such as ``elasticsearch://localhost:9200/wiki``.
        passages: With ids that are unique.
        connection: How to talk to the server.
        resume: Whether an index that is there is gone on with. Passages that it has already are skipped.
        progress: Called with the number of passages that are dealt with so far.
        replicas: Copies of the index on other nodes, made at the end.
        patience: Seconds to go on trying while the server is too busy or cannot be reached.
        batch: Passages in a request at most.
        requests: Requests at the same time.
        client: The client's module.

    Returns:
        What became of the passages. Those that the server refuses are named in it, and the rest is loaded.

    Raises:
        ValueError: ``where`` is no such address.
        SandboxFault: The server cannot be used, is gone for longer than ``patience``, or has an index of that name that
            is of another form, or that is there and ``resume`` is off. What was acknowledged stays: load again to go on.
    """
    address, connection = read_address(where, connection)
    server = Server(address, connection, client)
    loader = _Loader(server, patience)
    try:
        before = loader.prepare(resume)
        report = loader.load(passages, progress, batch, requests)
        loader.finish(replicas, before + report.loaded)
    finally:
        server.close()
    return report


class _Loader:
    """The loading of one index."""

    def __init__(self, server: Server, patience: float) -> None:
        self._server = server
        self._index = server.address.index
        self._patience = patience
        self._stopped = threading.Event()
        self._unmet = 0  # documents that were there before and have not been met among the passages

    def prepare(self, resume: bool) -> int:
        """Brings the index into the state that it is loaded in.

        Returns:
            How many documents it has.
        """
        server, index = self._server, self._index
        server.check_version(server.connection.timeout)
        is_there = self._insist(lambda client: client.indices.exists(index=index))
        if is_there and not resume:
            raise SandboxFault(
                f"there is an index {index!r} at {server.address.url} already: go on with it (resume), delete it, or take "
                "another name"
            )
        if not is_there:
            reply = self._insist(
                lambda client: client.options(ignore_status=400).indices.create(index=index, **form.creation())
            )
            # A try whose answer was lost may have created it already; the check is the same for both.
            if "error" in reply and reply["error"]["type"] != "resource_already_exists_exception":
                raise server.fault(400, reply)
        found = self._insist(lambda client: client.indices.get(index=index))
        form.check(found, server.address)
        if is_there:
            self._insist(lambda client: client.indices.put_mapping(index=index, meta=form.meta(complete=False)))
            self._insist(lambda client: client.indices.put_settings(index=index, settings={"refresh_interval": "-1"}))
        self._unmet = self._count()
        return self._unmet

    def load(self, passages: Iterable[Passage], progress: Callable[[int], None], batch: int, requests: int) -> LoadReport:
        """Loads all passages, in so many requests at a time."""
        report = LoadReport()
        under_way: deque[Future[LoadReport]] = deque()

        def settle() -> LoadReport:
            part = under_way.popleft().result()
            total = report + part
            progress(total.loaded + total.skipped + len(total.failed))
            return total

        with ThreadPoolExecutor(requests, thread_name_prefix="bulk") as threads:
            try:
                for some in _batches(passages, batch):
                    if len(under_way) > requests:  # one that waits, so that no thread does
                        report = settle()
                    under_way.append(threads.submit(self._load_batch, some))
                while under_way:
                    report = settle()
            finally:
                self._stopped.set()
                threads.shutdown(cancel_futures=True)
        return report

    def finish(self, replicas: int, expected: int) -> None:
        """Makes the index searchable and quick, and marks it as complete.

        Raises:
            SandboxFault: It has fewer documents than were acknowledged.
        """
        index = self._index
        settings = {"refresh_interval": None, "number_of_replicas": replicas}
        self._insist(lambda client: client.indices.put_settings(index=index, settings=settings))
        merge = _MERGE_SECONDS
        self._server.insist(lambda client: client.indices.forcemerge(index=index, max_num_segments=1), merge)
        found = self._count()
        if found < expected:
            raise SandboxFault(
                f"index {index!r} at {self._server.address.url} has {found} passages, expected {expected}: somebody else "
                "deletes there, or the server has lost what it acknowledged; look at its log and load again",
                retryable=True,
            )
        self._insist(lambda client: client.indices.put_mapping(index=index, meta=form.meta(complete=True)))

    def _count(self) -> int:
        self._insist(lambda client: client.indices.refresh(index=self._index))
        return int(self._insist(lambda client: client.count(index=self._index))["count"])

    def _insist(self, call: Callable[[Any], Any]) -> Any:
        return self._server.insist(call, max(self._patience, self._server.connection.timeout))

    def _load_batch(self, passages: list[Passage]) -> LoadReport:
        """Loads some passages in one request, if the server is well."""
        refused = [(passage.id, form.unsendable(passage.id)) for passage in passages]
        report = LoadReport(failed=[(id, reason) for id, reason in refused if reason])
        sendable = [passage for passage, (_, reason) in zip(passages, refused, strict=True) if not reason]
        if self._unmet > 0:
            same, taken, sendable = self._compare(sendable)
            report += LoadReport(0, same, taken)
            self._unmet -= same + len(taken)  # of two threads one may be lost, which only means to look up some more
        again = False
        tries = pauses(0.2, 10.0)
        end: float | None = None
        while sendable:
            try:
                part, sendable = self._send(sendable, again)
                report, end = report + part, None if part.loaded + part.skipped else end
                fault = f"Elasticsearch at {self._server.address.url} is too busy"
            except RequestTooLarge as refusal:
                if len(sendable) == 1:
                    return report + LoadReport(failed=[(sendable[0].id, str(refusal))])
                half = len(sendable) // 2
                return report + self._load_batch(sendable[:half]) + self._load_batch(sendable[half:])
            except PassingFault as problem:
                again, fault = True, str(problem)
            if sendable:
                end = end or monotonic() + self._patience
                if self._stopped.wait(next(tries)) or monotonic() > end:
                    raise SandboxFault(f"{fault}; tried for {self._patience:g} s. Load again to go on", retryable=True)
                logger.warning("%s; trying again to load %d passages", fault, len(sendable))
        return report

    def _send(self, passages: list[Passage], again: bool) -> tuple[LoadReport, list[Passage]]:
        """Sends passages once.

        Args:
            again: Whether they were sent before and the answer was lost.

        Returns:
            What became of them, and those that the server had no time for.
        """
        operations = [_operation(passage) for passage in passages]
        items = self._server.request(
            lambda client: client.bulk(
                index=self._index, operations=operations, filter_path=["items.*.status", "items.*.error"]
            ),
            _REQUEST_SECONDS,
        ).get("items", [])
        if len(items) != len(passages):
            raise SandboxFault(f"expected {len(passages)} answers to a bulk request, found {len(items)}")
        loaded, there, later = 0, [], []
        failed: list[tuple[str, str]] = []
        for passage, item in zip(passages, items, strict=True):
            (result,) = item.values()
            status, error = result["status"], result.get("error")
            if status in (200, 201):
                loaded += 1
            elif status == 409:
                there.append(passage)
            elif status in (401, 403, 404):  # not this passage's doing: every other one would meet it too
                raise self._server.fault(status, error)
            elif isinstance(self._server.fault(status, error), PassingFault):
                later.append(passage)
            else:
                failed.append((passage.id, reason_of(error)))
        same, taken, gone = self._compare(there)
        counts = LoadReport(loaded + same) if again else LoadReport(loaded, same)
        return counts + LoadReport(failed=failed + taken), later + gone

    def _compare(self, passages: list[Passage]) -> tuple[int, list[tuple[str, str]], list[Passage]]:
        """Looks passages up.

        Returns:
            How many are in the index just so, for which another one is there (with the reason), and which are not there.
        """
        if not passages:
            return 0, [], []
        ids = [passage.id for passage in passages]
        found = self._insist(lambda client: client.mget(index=self._index, ids=ids))["docs"]
        same, taken, absent = 0, [], []
        for passage, there in zip(passages, found, strict=True):
            if not there.get("found"):
                absent.append(passage)
            elif there["_source"] == form.document(passage):
                same += 1
            else:
                taken.append((passage.id, "another passage has this id"))
        return same, taken, absent


def _batches(passages: Iterable[Passage], most: int) -> Iterator[list[Passage]]:
    """Parts of at most so many passages, and of about so many characters that a request may have."""
    batch: list[Passage] = []
    characters = 0
    for passage in passages:
        batch.append(passage)
        characters += len(passage.text) + len(passage.title)
        if len(batch) == most or characters > _REQUEST_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _operation(passage: Passage) -> bytes:
    """Two lines of a bulk request."""
    document = json.dumps(form.document(passage), ensure_ascii=False)
    return f'{{"create":{{"_id":{json.dumps(passage.id)}}}}}\n{document}'.encode()
