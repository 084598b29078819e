"""Ranks attach pytest's log handlers to the same loggers as pytest, in a cheaper way."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from _pytest import logging as plugin

from pytest_pprank import _pytest_compat

pytest_attaches_to_many = pytest.mark.skipif(
    not hasattr(plugin.catching_logs, "attached_loggers"), reason="this pytest takes the root only"
)


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """Return a logger that propagates, one that does not, one below that, and an unused name."""
    found = [logging.getLogger(f"pprank_test.{name}") for name in ("on", "off", "off.x.below")]
    found[1].propagate = False
    yield [logging.getLogger(), *found]
    found[1].propagate = True


def made_of(catching_logs: type) -> type:
    """Return our variant of pytest's `catching_logs`; this run's own is changed only briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin, "catching_logs", catching_logs)
        _pytest_compat.speed_up_log_capture()
        return plugin.catching_logs


def attached(
    catching_logs: type, loggers: list[logging.Logger], level: int | None
) -> tuple[int, list[tuple[int, bool]]]:
    handler, before = logging.NullHandler(), [(g.level, list(g.handlers)) for g in loggers]
    with catching_logs(handler, level=level) as same:
        assert same is handler
        seen = handler.level, [(g.level, handler in g.handlers) for g in loggers]
    assert [(g.level, list(g.handlers)) for g in loggers] == before
    return seen


@pytest_attaches_to_many
@pytest.mark.parametrize("level", [None, logging.DEBUG, logging.ERROR])
def test_the_same_loggers_for_the_same_time(
    loggers: list[logging.Logger], level: int | None
) -> None:
    own = plugin.catching_logs
    quick = made_of(own)
    assert quick is not own
    found = attached(quick, loggers, level)
    assert found == attached(own, loggers, level)
    assert [there for _, there in found[1]] == [True, False, True, False]


@pytest_attaches_to_many
def test_a_handler_that_is_gone_already_is_no_error(loggers: list[logging.Logger]) -> None:
    handler = logging.NullHandler()
    with made_of(plugin.catching_logs)(handler):
        loggers[2].handlers.clear()
    assert handler not in loggers[0].handlers


def test_another_form_of_it_is_left_alone() -> None:
    class Unknown:
        __slots__ = ("handler", "proxies")

    assert made_of(Unknown) is Unknown
