"""Faults of one rank that survives: it fails with an exception, or leaves its peers waiting."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from chaos_case import XFAILED, Case, Expected, troubled
from chaos_catalogue import case_of, fault, names_rank, where_peers_are
from chaos_scene import BLOCKING, FINISH, MEETING, SETUP, draw_scene, write_scene


@dataclass(frozen=True)
class Failing:
    """Lines that raise, and the words of the error; `traceback`: whether there is one."""

    lines: str
    words: tuple[str, ...]
    traceback: bool = True
    limit: int = 1_000_000
    absent: tuple[str, ...] = ()


_UNPICKLABLE = """\
class Local(Exception):
    def __str__(self):
        return "readable all the same"
    def __reduce__(self):
        raise TypeError("no")
raise Local"""

_RECURSION = """\
def deeper(n):
    return deeper(n + 1)
deeper(0)"""

_JUNK_THEN_FAIL = """\
os.write(1, bytes(range(256)) * 64 + b"\\xff\\xfe no newline")
sys.stderr.buffer.write(b"\\x80\\x81 \\x1b[2J \\x00")
raise ValueError("after the junk")"""

_FLOOD_THEN_FAIL = """\
for n in range(40_000):
    print(n, "x" * 100)
raise ValueError("after the flood")"""

FAILING = {
    "assert": Failing("value = 42\nassert value == 41, 'off by one'", (r"assert 42 == 41",)),
    "raise": Failing("raise ValueError('out of sorts')", (r"ValueError: out of sorts",)),
    "sys_exit": Failing("sys.exit(3)", (r"SystemExit: 3",)),
    "unpicklable": Failing(_UNPICKLABLE, (r"readable all the same",)),
    "recursion": Failing(_RECURSION, (r"RecursionError", r"deeper")),
    "memory_error": Failing(
        "raise MemoryError('42 GiB')",
        (r"MemoryError: 42 GiB",),
        absent=(r"out of memory",),
    ),
    "huge_message": Failing(
        "raise ValueError('begin ' + 'x' * 5_000_000 + ' end')",
        (r"ValueError: begin x",),
        limit=30_000_000,
    ),
    "pytest_fail": Failing("pytest.fail('said no', pytrace=False)", (r"said no",), traceback=False),
    "odd_message": Failing(
        "raise ValueError('odd \\udc80 \\x00 \\x1b[31m \\U0001f914')", (r"ValueError: odd",)
    ),
    "junk_then_fail": Failing(_JUNK_THEN_FAIL, (r"ValueError: after the junk",)),
    "flood_then_fail": Failing(_FLOOD_THEN_FAIL, (r"ValueError: after the flood",)),
}


def _failing(name: str, failing: Failing) -> None:
    @fault(name)
    def make(rng: random.Random, number: int, world: int) -> Case:
        scene = draw_scene(rng, number, world)
        lines = failing.lines
        if scene.moment == "during":
            # the culprit has contributed its part but has not waited for the result
            lines = f"work = dist.all_reduce(torch.ones(3), async_op=True)\n{lines}"
            scene = replace(scene, peers="all_reduce")
        words = [*failing.words, *([rf"fault_{scene.tag}"] if failing.traceback else [])]
        if scene.moment != "during" and scene.peers not in FINISH:
            words += where_peers_are(scene)  # ranks that simply pass are not mentioned
        expected = troubled(
            scene.phase, "failed", [scene.culprit], words, [*failing.absent, "deadlock"]
        )
        source = write_scene(scene, name, lines)
        return case_of(scene, name, source, replace(expected, limit=failing.limit))


for _name, _entry in FAILING.items():
    _failing(_name, _entry)


@fault("missing_send")
def _missing(rng: random.Random, number: int, world: int) -> Case:
    scene = draw_scene(rng, number, world, peers=tuple(BLOCKING), moments=("before", "after"))
    words = [*where_peers_are(scene), names_rank(scene.culprit)]
    expected = troubled(scene.phase, "diverged", scene.others, words, ["deadlock"])
    source = write_scene(scene, "missing_send", "return")
    return case_of(scene, "missing_send", source, expected)


@fault("misses_a_meeting")
def _misses_meeting(rng: random.Random, number: int, world: int) -> Case:
    """Ranks that meet learn at once that a peer cannot come, without the grace period."""
    scene = draw_scene(rng, number, world, peers=tuple(MEETING), moments=("before", "after"))
    words = [names_rank(scene.culprit), rf"{scene.peers}\(\)", rf"peer_{scene.tag}|test_\w+\.py:"]
    expected = troubled(scene.phase, ("failed", "diverged"), words=words, absent=["deadlock"])
    source = write_scene(scene, "misses_a_meeting", "return")
    return case_of(scene, "misses_a_meeting", source, expected)


@fault("skip_on_one")
def _skip(rng: random.Random, number: int, world: int) -> Case:
    """A test is skipped on all ranks or on none: anything else is a disagreement."""
    scene = draw_scene(rng, number, world, ("call", *SETUP), moments=("before", "after"))
    kinds = ("diverged",) if scene.peers_block else ("disagree", "failed", "diverged")
    words = [names_rank(scene.culprit), r"skipped"]
    words += [rf"peer_{scene.tag}"] if scene.peers_block else []
    expected = troubled(scene.phase, kinds, words=words, absent=["deadlock"])
    source = write_scene(scene, "skip_on_one", "pytest.skip('not here')")
    return case_of(scene, "skip_on_one", source, expected)


@fault("xfail_on_one")
def _xfail(rng: random.Random, number: int, world: int) -> Case:
    """A test that is expected to fail and fails on one rank has failed as expected."""
    scene = draw_scene(rng, number, world, ("call", "setup"), moments=("before", "after"))
    source = write_scene(
        scene,
        "xfail_on_one",
        "raise ValueError('known')",
        marks=["xfail(reason='known')"],
    )
    return case_of(scene, "xfail_on_one", source, Expected(XFAILED, scene.phase))
