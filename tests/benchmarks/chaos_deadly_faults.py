"""Faults of one rank that does not return: it dies, or gets stuck."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from chaos_case import Case, troubled
from chaos_catalogue import HUNG_AFTER, case_of, fault, names_rank, where_peers_are
from chaos_scene import FINISH, draw_scene, write_scene


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
            # the main thread is inside a collective that cannot complete
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
    """A rank's pytest session is told to end: no death by a signal, but the rank is lost."""

    @fault(name)
    def make(rng: random.Random, number: int, world: int) -> Case:
        scene = draw_scene(rng, number, world, moments=("before", "after"))
        expected = troubled(
            scene.phase, ("died", "failed"), [scene.culprit], [word], ["out of memory", "deadlock"]
        )
        source = write_scene(scene, name, line)
        return case_of(scene, name, source, expected)


@fault("dies_beside_forked_child")
def _forked(rng: random.Random, number: int, world: int) -> Case:
    """The child has copies of everything: connection, pipes, lock files. The rank is still lost."""
    scene = draw_scene(rng, number, world)
    lines = "if os.fork() == 0:\n    time.sleep(10**6)\nos._exit(81)"
    words = [r"code 81", rf"rank {scene.culprit} died in {scene.phase}"]
    scene = replace(scene, moment="before")
    expected = troubled(scene.phase, "died", [scene.culprit], words, ["deadlock"])
    source = write_scene(scene, "dies_beside_forked_child", lines)
    return case_of(scene, "dies_beside_forked_child", source, expected)


@fault("killed_by_peer")
def _killed_by_peer(rng: random.Random, number: int, world: int) -> Case:
    """The rank that dies is the culprit, whoever sent the signal."""
    killer, victim = rng.sample(range(world), 2)
    name = f"test_{number:03d}_killed_by_peer"
    source = f"""\
def {name}(process_group, pprank):
    pids = pprank.gather(os.getpid())
    if pprank.rank == {killer}:
        os.kill(pids[{victim}], signal.SIGKILL)
    dist.barrier()
"""
    words = [r"SIGKILL", rf"rank {victim} died in call"]
    return Case(name, source, troubled("call", "died", [victim], words), "killed_by_peer")


@fault("kills_parent")
def _kills_parent(rng: random.Random, number: int, world: int) -> Case:
    """The fork server is the parent of all ranks: they cannot continue without it."""
    scene = draw_scene(rng, number, world, moments=("before", "after"))
    expected = troubled(scene.phase, ("died", "group"))
    source = write_scene(
        scene, "kills_parent", "os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(10**6)"
    )
    return case_of(scene, "kills_parent", source, expected)


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
        # a stopped process cannot report where it is, but that it is stopped can be observed
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
