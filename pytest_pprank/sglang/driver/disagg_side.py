"""One instance of a role of `disagg`, as a test sees it."""

from __future__ import annotations

from pytest_pprank.sglang.driver.disagg_views import DisaggView
from pytest_pprank.sglang.driver.lockstep import LockstepDriver
from pytest_pprank.sglang.driver.messages import Result


def views(driver: LockstepDriver) -> tuple[DisaggView, ...]:
    """Return what each stage of all instances held after the last step."""
    return tuple(view for view in driver.stages if isinstance(view, DisaggView))


class Side:
    """One instance of a role: the contents of its stages, and the results of its first stage.

    `name`: ``prefill`` or ``decode``, with its number if there are several.
    """

    def __init__(self, name: str, driver: LockstepDriver) -> None:
        self.name = name
        self._driver = driver

    @property
    def stages(self) -> tuple[DisaggView, ...]:
        """What each stage held after the last step; the same on all ranks, empty before it."""
        return tuple(view for view in views(self._driver) if view.instance == self.name)

    @property
    def results(self) -> dict[str, Result]:
        """Its `Result` of each request that was sent to it, by id.

        Prefill's has at most one token, and the finish reason ``length`` once its KV was sent.
        """
        return self._driver.results[self.name]

    def state(self, rid: str) -> tuple[str, ...]:
        """Return the state of a request on each stage.

        One of bootstrapping, waiting, transferring, decoding, done, or ``unknown`` if the request
        has not arrived yet (see `DisaggView.state`).
        """
        result = self.results.get(rid)
        absent = "done" if result is not None and result.finished else "unknown"
        return tuple(view.state(rid) or absent for view in self.stages)
