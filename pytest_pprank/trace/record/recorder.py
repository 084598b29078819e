"""Turns what happens on this rank into records of its trace. No error in here reaches a caller."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

from pytest_pprank.oplog.file import Site
from pytest_pprank.oplog.record.calls import thread_name
from pytest_pprank.sglang.stage.event_loop import iteration_of_this_thread
from pytest_pprank.trace.file import MOST_BYTES, Detail, Tag
from pytest_pprank.trace.record.ring import RingWriter

_TEXT = 2000
_PLAIN = 1500
"""The most bytes of an event whose texts are surely not too long to be read."""
_NAME = 200
_ITEMS = 64
_PARTS = 3
"""How many of the last parts of a file's path are kept."""
# escapes everything beyond ASCII: lone surrogates, too, are valid in JSON then
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=repr).encode


class TraceRecorder:
    """Records events of all threads of this rank. No method raises."""

    def __init__(self, writer: RingWriter) -> None:
        self._writer = writer

    def begin_test(self, serial: int) -> None:
        """Begin the trace of a test; that of the test before is gone."""
        self._writer.begin_test(serial)

    def event(
        self,
        kind: str,
        name: str,
        details: Mapping[str, Detail] | None = None,
        stack: Sequence[Site] = (),
        iteration: int | None = None,
    ) -> None:
        """Record something that happens now."""
        self._record(Tag.EVENT, kind, name, details, stack, iteration)

    def begin(
        self,
        kind: str,
        name: str,
        details: Mapping[str, Detail] | None = None,
        stack: Sequence[Site] = (),
        iteration: int | None = None,
    ) -> int:
        """Record that something begins now; return the number for `end`."""
        return self._record(Tag.BEGIN, kind, name, details, stack, iteration)

    def end(self, number: int, details: Mapping[str, Detail] | None = None) -> None:
        """Record that what has begun with `number` ends now; 0 stands for nothing."""
        try:
            if number:
                shown = _encode(_shortened(details)) if details else "{}"
                payload = f"[{number},{shown}]".encode()
                self._writer.write(Tag.END, payload[:MOST_BYTES], time.monotonic())
        except Exception as error:
            self.fault(error)

    def operation(self, record: bytes) -> None:
        """Record an operation of torch.distributed, by its record in the ledger."""
        try:
            self._writer.write(Tag.OPERATION, record, time.monotonic())
        except Exception as error:
            self.fault(error)

    def fault(self, error: BaseException) -> None:
        """Record that something could not be recorded."""
        self._writer.fault(f"{type(error).__name__}: {error}")

    def _record(
        self,
        tag: Tag,
        kind: str,
        name: str,
        details: Mapping[str, Detail] | None,
        stack: Sequence[Site],
        iteration: int | None,
    ) -> int:
        try:
            if iteration is None:
                iteration = iteration_of_this_thread()
            head = [kind, name, iteration, thread_name(), details or {}]
            sites = _sites(tuple(stack)) if stack else "[]"
            payload = f"{_encode(head)[:-1]},{sites}]".encode()
            if len(payload) > _PLAIN:  # few are: no time is spent on the lengths of the others
                payload = _shorter(head, sites)
            return self._writer.write(tag, payload, time.monotonic())
        except Exception as error:
            self.fault(error)
            return 0


def _shorter(head: Sequence[object], sites: str) -> bytes:
    """Return the payload with its texts shortened, so that it fits in."""
    kind, name, iteration, thread, details = head
    short = _shortened(details) if isinstance(details, dict) else {}
    for kept, stack in ((short, sites), ({"details": "left out: too long"}, "[]")):
        shown = _encode([kind, str(name)[:_NAME], iteration, thread, kept])
        payload = f"{shown[:-1]},{stack}]".encode()
        if len(payload) <= MOST_BYTES:
            break
    return payload


def _shortened(details: Mapping[str, Detail]) -> dict[str, Detail]:
    return {name: _short(value) for name, value in details.items()}


def _short(value: Detail) -> Detail:
    if isinstance(value, str):
        return value if len(value) <= _TEXT else f"{value[:_TEXT]} ... ({len(value)} characters)"
    if isinstance(value, list):
        more = [f"... {len(value) - _ITEMS} more"] if len(value) > _ITEMS else []
        return [text[:_NAME] for text in value[:_ITEMS]] + more
    return value


@lru_cache(2048)
def _sites(stack: tuple[Site, ...]) -> str:
    """Return a stack as JSON. Cached, because programs repeat their calls."""
    return _encode([[_short_path(site.file), site.line, site.function] for site in stack])


def _short_path(file: str) -> str:
    return "/".join(file.rsplit("/", _PARTS)[-_PARTS:])
