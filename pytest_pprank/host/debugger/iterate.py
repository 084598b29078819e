"""The command ``iterate``: iterations of the engine while all ranks have stopped in pdb."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Protocol, cast

_DRIVER = os.path.join("pytest_pprank", "sglang", "driver") + os.sep
_FIXTURES = ("engine", "disagg")


class _Engine(Protocol):
    """What the fixtures of `_FIXTURES` have in common."""

    def step(self, n: int = 1) -> None:
        """Run iterations; a call of all ranks."""


class Iteration:
    """Lets the engine of the running test iterate. Debuggers do not stop meanwhile."""

    def __init__(self) -> None:
        self.values: Mapping[str, object] = {}
        """The fixtures of the running test, by name."""
        self.running = False

    def __call__(self, times: int) -> str:
        """Run iterations of the engine, with all other ranks; return how it is then."""
        engine = self._engine
        assert engine is not None
        self.running = True
        try:
            engine.step(times)
        except Exception as error:
            return f"*** {type(error).__name__}: {error}"
        finally:
            self.running = False
        return repr(engine)

    def why_not(self, frame: FrameType | None) -> str:
        """Return why this rank, stopped at `frame`, cannot take part; empty if it can."""
        if self._engine is None:
            return "runs a test without the fixture 'engine' or 'disagg'"
        if frame is None:
            return "has failed"
        if threading.current_thread() is not threading.main_thread():
            return "has stopped in a side thread, such as that of the event loop"
        inner: FrameType | None = frame
        while inner is not None:
            if _DRIVER in inner.f_code.co_filename:
                return "is inside a call of the engine already"
            inner = inner.f_back
        return ""

    @property
    def _engine(self) -> _Engine | None:
        found = (self.values[name] for name in _FIXTURES if name in self.values)
        return cast("_Engine | None", next(found, None))
