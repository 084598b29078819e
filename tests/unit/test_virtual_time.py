"""The time that SGLang's modules see: it stands, runs and is moved on, without a rank."""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver import clock as clock_module
from pytest_pprank.sglang.driver.clock import Clock
from pytest_pprank.sglang.driver.virtual_time import TICK_NS, VirtualTime, bind, virtual_waits

NS = 10**9
LATE_S = 30
"""Time limit for what another thread does at once."""


@pytest.fixture
def virtual() -> VirtualTime:
    return VirtualTime()


def module_with(source: str, name: str = "sglang.made_up") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(source, module.__dict__)
    return module


@pytest.fixture
def sglang(virtual: VirtualTime) -> Iterator[types.ModuleType]:
    """A module that takes its time from `virtual`, and waits in its functions."""
    module = module_with(
        "import time, time as other\n"
        "from time import perf_counter, sleep as nap\n"
        "def wait(event, seconds): return event.wait(seconds)\n"
        "def wait_on(condition, seconds):\n"
        "    with condition: return condition.wait(seconds)\n"
    )
    undo = [*bind(virtual, [module]), virtual_waits(virtual)]
    yield module
    assert all(restore() for restore in undo)


def test_clocks_that_stand_are_moved_by_exact_seconds(virtual: VirtualTime) -> None:
    virtual.stop()
    before = virtual.read("time")
    assert before % TICK_NS == 0
    virtual.advance(300 * NS)
    assert virtual.read("time") / NS - before / NS == 300.0


@pytest.mark.parametrize("clock", ["monotonic", "perf_counter"])
def test_no_reading_is_the_same_as_the_one_before(virtual: VirtualTime, clock: str) -> None:
    """SGLang divides by how long something took."""
    virtual.stop()
    first = virtual.read(clock)
    virtual.advance(300 * NS)
    assert virtual.read(clock) == first + 300 * NS + 1


def test_clocks_never_go_back(virtual: VirtualTime) -> None:
    shown = [virtual.read("monotonic")]
    for change in (virtual.stop, virtual.run, lambda: virtual.advance(5), virtual.stop):
        change()
        shown.append(virtual.read("monotonic"))
    assert shown == sorted(shown)


def test_running_clocks_run_on_from_where_they_stood(virtual: VirtualTime) -> None:
    virtual.stop()
    virtual.advance(1000 * NS)
    at = virtual.read("perf_counter")
    virtual.run()
    assert not virtual.stands
    assert at <= virtual.read("perf_counter") < at + LATE_S * NS


def test_every_name_of_time_in_a_module(virtual: VirtualTime, sglang: types.ModuleType) -> None:
    virtual.stop()
    assert sglang.time is sglang.other is not time
    for name in ("time", "monotonic", "perf_counter"):
        assert abs(getattr(sglang.time, f"{name}_ns")() - virtual.read(name)) <= 1
        assert getattr(sglang.time, name)() == pytest.approx(virtual.read(name) / NS)
    assert sglang.perf_counter() == pytest.approx(virtual.read("perf_counter") / NS)
    assert sglang.time.strftime is time.strftime


def test_names_are_restored(virtual: VirtualTime) -> None:
    module = module_with("import time\nfrom time import monotonic")
    undo = list(bind(virtual, [module]))
    assert module.time is not time
    assert all(restore() for restore in undo)
    assert (module.time, module.monotonic) == (time, time.monotonic)


@pytest.mark.parametrize("how", ["wait", "wait_on", "nap"])
def test_wait_that_ends_when_the_clock_is_moved(
    virtual: VirtualTime, sglang: types.ModuleType, how: str
) -> None:
    virtual.stop()
    on: dict[str, list[object]]
    on = {"wait": [threading.Event()], "wait_on": [threading.Condition()], "nap": []}
    reads = threading.Event()
    read = virtual.read

    def noted(clock: str) -> int:
        reads.set()
        return read(clock)

    virtual.read = noted  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: getattr(sglang, how)(*on[how], 3600))
        assert reads.wait(LATE_S)
        virtual.advance(3599 * NS)
        time.sleep(0.05)  # it looks several times
        assert not waits.done()
        virtual.advance(NS)
        assert not waits.result(LATE_S)


def test_wait_that_is_notified_before(virtual: VirtualTime, sglang: types.ModuleType) -> None:
    virtual.stop()
    event = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(sglang.wait, event, 3600)
        event.set()
        assert waits.result(LATE_S) is True


def test_waits_of_others_are_real(virtual: VirtualTime, sglang: types.ModuleType) -> None:
    del sglang
    virtual.stop()
    other = module_with("def wait(event, seconds): return event.wait(seconds)", "other")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(other.wait, threading.Event(), 0.01).result(LATE_S) is False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, virtual: VirtualTime) -> Clock:
    """The clock of stage 1 of decode, with two stages in each role."""
    monkeypatch.setattr(clock_module, "virtual_time", lambda: virtual)
    return Clock("disagg", {"prefill": 2, "decode": 2}, ("decode", 1), lambda _: None)


def test_only_the_stages_that_are_named_are_moved(clock: Clock, virtual: VirtualTime) -> None:
    with clock.frozen():
        at = virtual.read("time")
        clock.advance(5, [0])
        clock.advance(5, role="prefill")
        assert virtual.read("time") == at
        clock.advance(5, [1], role="decode")
        clock.advance(0.5, [1])
        assert virtual.read("time") == at + 55 * NS // 10


def test_the_end_of_a_test_moves_on_those_that_are_behind(
    clock: Clock, virtual: VirtualTime
) -> None:
    with clock.frozen():
        at = virtual.read("time")
        clock.advance(100, role="prefill")
        clock.advance(30)
        clock.end()
        assert not virtual.stands
        assert at + 130 * NS <= virtual.read("time") < at + (130 + LATE_S) * NS
    clock.end()
    assert virtual.read("time") < at + (130 + LATE_S) * NS


def test_inner_block_ends_only_what_it_began(clock: Clock, virtual: VirtualTime) -> None:
    with clock.frozen():
        with clock.frozen([1]):
            pass
        assert virtual.stands
    assert not virtual.stands


def test_instance_that_is_named(monkeypatch: pytest.MonkeyPatch, virtual: VirtualTime) -> None:
    monkeypatch.setattr(clock_module, "virtual_time", lambda: virtual)
    sizes = {"prefill": 2, "decode 0": 1, "decode 1": 1}
    clock = Clock("disagg", sizes, ("decode 1", 0), lambda _: None)
    with clock.frozen(role="decode", index=1):
        at = virtual.read("time")
        clock.advance(5, role="decode", index=0)
        clock.advance(5, role="prefill", index=0)
        assert virtual.read("time") == at
        clock.advance(5, role="decode", index=1)
        clock.advance(5, role="decode")
        assert virtual.read("time") == at + 10 * NS
    with pytest.raises(UsageError, match="index=2; allowed: with role='decode', 0 to 1"):
        clock.advance(5, role="decode", index=2)
    with pytest.raises(UsageError, match="index=1; allowed: with a role only"):
        clock.advance(5, index=1)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ([0], {}, "seconds=0; allowed: a number above 0"),
        ([float("nan")], {}, "seconds=nan; allowed"),
        ([True], {}, "seconds=True; allowed"),
        (["5"], {}, "seconds='5'; allowed"),
        ([5], {"role": "both"}, "role='both'; allowed: 'prefill' or 'decode'"),
        ([5, [2]], {}, r"stages=\[2\]; allowed: a list of numbers from 0 to 1"),
        ([5, []], {}, r"stages=\[\]; allowed"),
        ([5, 1], {}, "stages=1; allowed"),
    ],
)
def test_wrong_arguments(
    clock: Clock, arguments: list[object], options: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=f"disagg.clock.advance: {words}"):
        clock.advance(*arguments, **options)  # type: ignore[arg-type]
