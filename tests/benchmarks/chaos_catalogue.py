"""The faults of the chaos run: what each does, and the verdict that a user should get for it.

Four families take a scene (rank, phase, moment, peers): a rank *fails* with an exception, *dies*,
gets *stuck*, or *leaves* its peers. What concerns all ranks at once, or leaves something behind, is
in chaos_group_faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from chaos_case import XFAILED, Case, Expected, troubled
from chaos_scene import (
    ANYWHERE,
    BLOCKING,
    FINISH,
    MEETING,
    SETUP,
    TEARDOWN,
    Scene,
    draw_scene,
    name_of,
    write_scene,
)

HUNG_AFTER = 4
"""Seconds until a test that is expected to hang is given up: its marker's timeout."""

Maker = Callable[[random.Random, int, int], Case]
"""Makes a case from a random source, its number and the number of ranks."""


@dataclass(frozen=True)
class Fault:
    """An entry of the catalogue: how to make a case of it, and how many ranks it takes."""

    make: Maker
    ranks: int


FAULTS: dict[str, Fault] = {}


def fault(name: str, ranks: int = 2) -> Callable[[Maker], Maker]:
    """Enter a maker into the catalogue."""

    def enter(maker: Maker) -> Maker:
        FAULTS[name] = Fault(maker, ranks)
        return maker

    return enter


def names_rank(rank: int) -> str:
    """Pattern of a text that speaks of a rank, alone or in a list."""
    return rf"\branks? (?:\d+,)*{rank}\b"


def case_of(scene: Scene, name: str, source: str, expected: Expected) -> Case:
    """Wrap a scene's source; tests behind it get what its place asks for."""
    after = None
    if scene.place == "session setup":
        rebuilt = f"test_{scene.tag}_{name}_rebuilt"
        again = f"def {rebuilt}(broken_{scene.tag}, pprank):\n    pass\n"
        after = Case(rebuilt, again, Expected())
    return Case(
        name=name_of(scene, name),
        source=source,
        expected=expected,
        fault=name,
        alone=scene.place.startswith("module"),
        last=scene.place == "session teardown",
        after=after,
    )


def where_peers_are(scene: Scene) -> list[str]:
    """The facts about the peers of a rank that will not come: who waits, and in which function."""
    words = [names_rank(peer) for peer in scene.others]
    return [*words, rf"peer_{scene.tag}"] if scene.peers_block else words


# --- a rank fails -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing:
    """Lines that raise, and the words of the error."""

    lines: str
    words: tuple[str, ...]
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
            # the culprit has given its part and has not waited for the result
            lines = f"work = dist.all_reduce(torch.ones(3), async_op=True)\n{lines}"
            scene = replace(scene, peers="all_reduce")
        expected = troubled(
            scene.phase,
            "failed",
            [scene.culprit],
            [*failing.words, rf"fault_{scene.tag}"],
            [*failing.absent, "deadlock"],
        )
        if scene.moment != "during":
            expected = replace(expected, words=(*expected.words, *where_peers_are(scene)))
        if scene.peers in FINISH:  # nothing is known of ranks that simply pass
            expected = replace(expected, words=(*failing.words, rf"fault_{scene.tag}"))
        source = write_scene(scene, name, lines)
        return case_of(scene, name, source, replace(expected, limit=failing.limit))


for _name, _entry in FAILING.items():
    _failing(_name, _entry)


# --- a rank dies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dying:
    """One line that ends the process, and the words of the verdict; `stack`: faulthandler's."""

    line: str
    words: tuple[str, ...]
    stack: bool = False


DYING = {
    "sigkill": Dying("os.kill(os.getpid(), signal.SIGKILL)", (r"SIGKILL",)),
    "sigterm": Dying("os.kill(os.getpid(), signal.SIGTERM)", (r"SIGTERM",)),
    "sigsegv": Dying("os.kill(os.getpid(), signal.SIGSEGV)", (r"SIGSEGV",), stack=True),
    "sigabrt": Dying("os.abort()", (r"SIGABRT",), stack=True),
    "sigbus": Dying("os.kill(os.getpid(), signal.SIGBUS)", (r"SIGBUS",), stack=True),
    "os_exit": Dying("os._exit(77)", (r"exit(ed)?\b.* code 77",)),
    "os_exit_0": Dying("os._exit(0)", (r"exit(ed)?\b.* code 0",)),
    "last_words": Dying(
        "os.write(2, b'tired of it all\\n'), os._exit(9)", (r"code 9", r"tired of it all")
    ),
}


def _dying(name: str, dying: Dying) -> None:
    @fault(name)
    def make(rng: random.Random, number: int, world: int) -> Case:
        scene = draw_scene(rng, number, world)
        lines, meanwhile = dying.line, ""
        if scene.moment == "during":
            # the main thread is inside a collective that nobody completes
            lines = f"threading.Timer(0.2, lambda: ({dying.line})).start()"
            meanwhile = f"dist.recv(torch.empty(3), src={scene.others[0]})"
        words = [*dying.words, rf"rank {scene.culprit} died in {scene.phase}"]
        words += [rf"fault_{scene.tag}"] if dying.stack else []
        expected = troubled(
            scene.phase, "died", [scene.culprit], words, ["out of memory", "deadlock"]
        )
        source = write_scene(scene, name, lines, meanwhile=meanwhile)
        return case_of(scene, name, source, expected)


for _name, _death in DYING.items():
    _dying(_name, _death)


def _ends_its_session(name: str, line: str, word: str) -> None:
    """A rank whose pytest session is told to end: not a death by signal, and no longer a rank."""

    @fault(name)
    def make(rng: random.Random, number: int, world: int) -> Case:
        scene = draw_scene(rng, number, world, moments=("before", "after"))
        expected = troubled(
            scene.phase, ("died", "failed"), [scene.culprit], [word], ["out of memory", "deadlock"]
        )
        source = write_scene(scene, name, line)
        return case_of(scene, name, source, expected)


_ends_its_session("pytest_exit", "pytest.exit('enough of it')", r"enough of it")
_ends_its_session("keyboard_interrupt", "raise KeyboardInterrupt", r"KeyboardInterrupt")


@fault("closes_all_descriptors")
def _closes(rng: random.Random, number: int, world: int) -> Case:
    """Without its connection a rank is lost, whatever its process still does."""
    scene = draw_scene(rng, number, world, moments=("before", "after"))
    first = rng.choice((0, 3))
    then = rng.choice(("pass", "time.sleep(1000)", "raise ValueError('unheard')"))
    source = write_scene(scene, "closes_all_descriptors", f"os.closerange({first}, 4096)\n{then}")
    expected = troubled(scene.phase, "died", [scene.culprit], absent=["out of memory"])
    return case_of(scene, "closes_all_descriptors", source, expected)


# --- a rank gets stuck ------------------------------------------------------------------------

STUCK = {
    "python_loop": "while True: pass",
    "c_loop_with_gil": "sum(itertools.count())",
    "regex_catastrophe": 're.match(r"(a+)+$", "a" * 64 + "b")',
    "sleep": "time.sleep(10**6)",
    "own_lock": "lock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "pipe_read": "reader, writer = os.pipe()\nos.read(reader, 1)",
    "waits_for_child": 'subprocess.run([sys.executable, "-c", "import time; time.sleep(10**6)"])',
    "ignores_signals": (
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "while True: time.sleep(0.01)"
    ),
    "flood_for_ever": 'while True: print("x" * 1000)',
    "sigstop": "os.kill(os.getpid(), signal.SIGSTOP)",
}


def _stuck(name: str, lines: str) -> None:
    @fault(name)
    def make(rng: random.Random, number: int, world: int) -> Case:
        scene = draw_scene(rng, number, world, moments=("before", "after"))
        words = [names_rank(scene.culprit)]
        # a stopped process cannot tell where it is, but that it is stopped can be seen
        words += [r"stopped"] if name == "sigstop" else [rf"fault_{scene.tag}"]
        diverged = scene.peers in FINISH
        if not diverged:
            words += where_peers_are(scene)
        if scene.peers_meet:
            words.append(rf"{scene.peers}\(\)")
        expected = troubled(
            scene.phase,
            "diverged" if diverged else "hung",
            [scene.culprit] if diverged else range(world),
            words,
            ["deadlock"],
        )
        source = write_scene(scene, name, lines, marks=[f"pprank(timeout={HUNG_AFTER})"])
        return case_of(scene, name, source, expected)


for _name, _lines in STUCK.items():
    _stuck(_name, _lines)


# --- a rank leaves its peers ------------------------------------------------------------------


@fault("missing_send")
def _missing(rng: random.Random, number: int, world: int) -> Case:
    scene = draw_scene(rng, number, world, peers=tuple(BLOCKING), moments=("before", "after"))
    words = [*where_peers_are(scene), names_rank(scene.culprit)]
    waits = {"recv": rf"waits? in recv from rank {scene.culprit}", "loop": r"peer_"}
    words.append(waits.get(scene.peers, rf"\b{scene.peers.removeprefix('dist_')}\b"))
    expected = troubled(scene.phase, "diverged", scene.others, words, ["deadlock"])
    source = write_scene(scene, "missing_send", "return")
    return case_of(scene, "missing_send", source, expected)


@fault("misses_a_meeting")
def _misses_meeting(rng: random.Random, number: int, world: int) -> Case:
    """Nobody needs to wait for the grace: who meets learns at once that a peer will not come."""
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
    """A test that is known to fail and fails on one rank has failed as expected."""
    scene = draw_scene(rng, number, world, ("call", "setup"), moments=("before", "after"))
    source = write_scene(
        scene,
        "xfail_on_one",
        "raise ValueError('known')",
        marks=["xfail(reason='known')"],
    )
    return case_of(scene, "xfail_on_one", source, Expected(XFAILED, scene.phase))


assert set(ANYWHERE) == {"call", *SETUP, *TEARDOWN}
