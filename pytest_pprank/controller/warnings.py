"""Shows warnings that ranks record once, in the controller's summary."""

from __future__ import annotations

import builtins
import warnings

import pytest

from pytest_pprank.protocol.messages import WarningSeen


class WarningRelay:
    """Passes each distinct warning of the ranks to pytest's own hook, in the order of the ranks.

    Ranks warn at the same time: in the order of arrival the output would differ from run to run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: set[WarningSeen] = set()
        self._waiting: list[tuple[int, WarningSeen]] = []

    def warn(self, text: str, item: pytest.Item | None = None) -> None:
        """Add a warning of our own, about `item` if given, to pytest's warnings summary."""
        path, line = ("pytest-pprank", 0) if item is None else (item.path, item.location[1] or 0)
        nodeid = "" if item is None else item.nodeid
        self._report(WarningSeen("PytestWarning", text, str(path), line + 1, "runtest", nodeid))

    def __call__(self, rank: int, seen: WarningSeen) -> None:
        """Keep a warning that a rank has sent, for `flush`."""
        self._waiting.append((rank, seen))

    def flush(self) -> None:
        """Report the warnings kept since the last call, each once."""
        waiting, self._waiting = self._waiting, []
        for _, seen in sorted(waiting, key=lambda sent: sent[0]):
            self._report(seen)

    def _report(self, seen: WarningSeen) -> None:
        if seen in self._seen:
            return
        self._seen.add(seen)
        category = _category(seen.category)
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warnings.WarningMessage(
                    category(seen.text), category, seen.filename, seen.lineno
                ),
                "when": seen.when,
                "nodeid": seen.nodeid,
                "location": None,
            }
        )


def _category(name: str) -> type[Warning]:
    found = getattr(builtins, name, None) or getattr(pytest, name, None)
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    return type(name, (UserWarning,), {})  # a class of a library this process has not imported
