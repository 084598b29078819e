"""Formats Python stacks as faulthandler writes them, without frames that are not of the test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pytest_pprank import frames
from pytest_pprank.words import plural_ranks

_START_OF_THREAD = re.compile(r"/threading\.py\", line \d+ in (run|_bootstrap|_bootstrap_inner)$")
_FRAME = re.compile(r'File "(.+?)", line (\d+) in (.+)')
_INSTALLED = re.compile(r'(?<=File ")/[^"]*/(?:site|dist)-packages/')
_OF_PYTHON = re.compile(r'(?<=File ")/[^"]*/lib/(?=python3\.\d+/)')
_SHORT = 4
_PYTEST_FRAMES = ("in pytest_pyfunc_call", "in call_fixture_func", "in pytest_runtest_protocol")


def fold(title: str, texts: dict[int, str]) -> tuple[tuple[str, str], ...]:
    """Return titled texts by rank, equal ones once: ``Stacks of ranks 0,1``.

    Thread ids are removed, so that they do not make equal stacks differ.
    """
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(re.sub(r"\b0x[0-9a-f]+\b ?", "", text), []).append(rank)
    return tuple((f"{title} of {plural_ranks(who)}", text) for text, who in ranks.items() if text)


def trim_stacks(text: str) -> str:
    """Remove from a faulthandler dump what does not help to find a problem in the test.

    That is this plugin's threads, the frames below the test in each stack, the list of extension
    modules, and in which folder packages are installed. The current thread comes first.
    """
    threads = re.split(r"\n+(?=(?:Current )?[Tt]hread 0x|Extension modules: )", text.strip())
    shown = [_above_pytest(thread) for thread in threads if not thread.startswith("Extension ")]
    folded = _fold_equal(thread for thread in shown if not _is_service_thread(thread))
    folded.sort(key=lambda it: (it.startswith("Thread"), "hread" in it.partition("\n")[0]))
    return _OF_PYTHON.sub("", _INSTALLED.sub("", "\n".join(folded)))


def _is_service_thread(thread: str) -> bool:
    return frames.is_service_thread((file, name) for file, _, name in _FRAME.findall(thread))


def _above_pytest(thread: str) -> str:
    lines = [line for line in thread.splitlines() if not _is_of_a_wrapper(line)]
    for index, line in enumerate(lines):
        if any(mark in line for mark in _PYTEST_FRAMES):
            return "\n".join(lines[:index])
    while len(lines) > 2 and _START_OF_THREAD.search(lines[-1]):
        lines.pop()
    return "\n".join(lines)


def _is_of_a_wrapper(line: str) -> bool:
    found = _FRAME.search(line)
    return found is not None and frames.folders().is_wrapper(found.group(1))


def _fold_equal(threads: Iterable[str]) -> list[str]:
    """Merge threads with equal stacks: pools of idle threads are common."""
    heads: dict[str, list[str]] = {}
    for thread in threads:
        head, _, stack = thread.partition("\n")
        heads.setdefault(stack, []).append(head)
    return [_describe_thread(stack, same) for stack, same in heads.items()]


def _describe_thread(stack: str, heads: list[str]) -> str:
    """Return threads with one stack, in one line if the stack is short.

    A side thread with a short stack is a service thread that waits for work.
    """
    found = _FRAME.findall(stack)
    side = all(head.startswith("Thread") for head in heads)
    if side and 0 < len(found) <= _SHORT:
        who = "Thread" if len(heads) == 1 else f"{len(heads)} threads"
        places = (f"{os.path.basename(file)}:{line} in {name}" for file, line, name in found)
        return f"{who} at " + " < ".join(places)
    return f"{heads[0]}\n{stack}".rstrip() if len(heads) == 1 else f"{len(heads)} threads:\n{stack}"
