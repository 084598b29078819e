"""Faults of messages between prefill and decode, and of transfers that write only a part."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.disagg import kv_manager, status_report
from pytest_pprank.sglang.driver.disagg_store_faults import Method

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler
    from pytest_pprank.sglang.driver.disagg_faults import Fault


def repeat_reports(scheduler: Scheduler, fault: Fault) -> None:
    """Send each report of this stage of prefill to decode twice."""

    def wrap(send: Method) -> Method:
        def twice(*args: object, **kwargs: object) -> object:
            if not fault.over.is_set():
                fault.hit()
                send(*args, **kwargs)
            return send(*args, **kwargs)

        return twice

    manager = kv_manager(scheduler)
    fault.replace(manager, status_report(manager), wrap)


def late_reports(scheduler: Scheduler, fault: Fault) -> None:
    """Keep the reports of this stage of prefill, and send them when the fault is released."""
    kept: deque[tuple[Method, tuple[object, ...], dict[str, object]]] = deque()

    def wrap(send: Method) -> Method:
        def keep(*args: object, **kwargs: object) -> object:
            if fault.over.is_set():
                return send(*args, **kwargs)
            fault.hit()
            kept.append((send, args, kwargs))
            return None

        return keep

    def send_kept() -> None:
        while kept:
            send, args, kwargs = kept.popleft()
            send(*args, **kwargs)

    manager = kv_manager(scheduler)
    fault.on_release(send_kept)
    fault.replace(manager, status_report(manager), wrap)
