"""Faults that block a transfer: the release waits until the transfer is complete."""

import threading
import time

from pytest_pprank.sglang.driver.disagg_faults import Fault


def test_release_waits_for_what_it_has_held() -> None:
    fault, under_way, through = Fault(), threading.Event(), threading.Event()

    def transfer() -> None:
        under_way.set()
        fault.block()
        time.sleep(0.2)
        through.set()
        fault.unblock()

    thread = threading.Thread(target=transfer)
    thread.start()
    under_way.wait()
    while not fault._blocked:
        time.sleep(0.001)
    assert not through.is_set()
    fault.release()
    assert through.is_set()
    thread.join()
