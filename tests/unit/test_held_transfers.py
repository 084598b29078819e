"""A fault that holds a transfer: when it is released, the transfer is through."""

import threading
import time

from pytest_pprank.sglang.driver.disagg_faults import Fault


def test_release_waits_for_what_it_has_held() -> None:
    fault, under_way, through = Fault(), threading.Event(), threading.Event()

    def transfer() -> None:
        under_way.set()
        fault.hold()
        time.sleep(0.2)
        through.set()
        fault.let_go()

    thread = threading.Thread(target=transfer)
    thread.start()
    under_way.wait()
    while not fault._held:
        time.sleep(0.001)
    assert not through.is_set()
    fault.release()
    assert through.is_set()
    thread.join()
