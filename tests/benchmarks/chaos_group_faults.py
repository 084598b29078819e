"""Faults that concern several ranks at once, or that leave something behind."""

from __future__ import annotations

import random
from dataclasses import replace

from chaos_case import FAILED, Case, Expected, troubled
from chaos_catalogue import HUNG_AFTER, case_of, fault, names_rank
from chaos_scene import FINISH, Scene, draw_scene, write_scene

_ALL_FAIL = ("call", "setup", "teardown", "module setup", "module teardown", "session teardown")


def _hung(name: str) -> str:
    return f"@pytest.mark.pprank(timeout={HUNG_AFTER})\ndef {name}(process_group, pprank):\n"


# --- every rank ---------------------------------------------------------------------------------


def _everywhere(scene: Scene, name: str, lines: str) -> str:
    """Return the source of a test in which the peers do the same as the culprit."""
    source = write_scene(scene, name, lines)
    doing = f"def peer_{scene.tag}(pprank):\n    pass"
    return source.replace(doing, f"def peer_{scene.tag}(pprank):\n    fault_{scene.tag}(pprank)")


@fault("assert_on_all")
def _assert_on_all(rng: random.Random, number: int, world: int) -> Case:
    scene = draw_scene(rng, number, world, _ALL_FAIL, ("before", "after"), tuple(FINISH))
    words = [r"assert 42 == 41", rf"fault_{scene.tag}"]
    expected = troubled(scene.phase, "failed", range(world), words, ["in another way", "diverged"])
    source = _everywhere(scene, "assert_on_all", "value = 42\nassert value == 41")
    return case_of(scene, "assert_on_all", source, expected)


@fault("assert_on_all_with_other_values")
def _assert_differs(rng: random.Random, number: int, world: int) -> Case:
    scene = draw_scene(rng, number, world, _ALL_FAIL, ("before", "after"), tuple(FINISH))
    words = [r"assert \d\d == -1", rf"fault_{scene.tag}"]
    expected = troubled(scene.phase, "failed", range(world), words, ["diverged"])
    lines = "value = 10 + pprank.rank\nassert value == -1"
    source = _everywhere(scene, "assert_on_all_with_other_values", lines)
    return case_of(scene, "assert_on_all_with_other_values", source, expected)


@fault("exit_on_all")
def _exit_on_all(rng: random.Random, number: int, world: int) -> Case:
    """All ranks exit with that code, whichever was first."""
    scene = draw_scene(rng, number, world, _ALL_FAIL, ("before", "after"), tuple(FINISH))
    expected = troubled(scene.phase, "died", words=[r"code 78", rf"died in {scene.phase}"])
    source = _everywhere(scene, "exit_on_all", "os._exit(78)")
    return case_of(scene, "exit_on_all", source, expected)


@fault("two_culprits")
def _two_culprits(rng: random.Random, number: int, world: int) -> Case:
    """The first cause is reported first; a death within the grace period is reported as well."""
    first, second = rng.sample(range(world), 2)
    name = f"test_{number:03d}_two_culprits"
    source = f"""\
def fault_{number:03d}():
    raise ValueError("the first cause")

def {name}(process_group, pprank):
    dist.all_reduce(torch.ones(3))
    if pprank.rank == {first}:
        fault_{number:03d}()
    if pprank.rank == {second}:
        time.sleep(0.5)
        os._exit(79)
"""
    words = [r"the first cause", rf"fault_{number:03d}", rf"rank {second} died", r"code 79"]
    return Case(name, source, troubled("call", "failed", [first], words), "two_culprits")


# --- deadlocks and mismatches -------------------------------------------------------------------


def _cycle(name: str, ranks: list[int], operation: str, world: int) -> Case:
    """Each of `ranks` waits for the next one; the others finish."""
    follows = dict(zip(ranks, [*ranks[1:], ranks[0]], strict=True))
    tag = name.split("_")[1]
    source = (
        f"def fault_{tag}(other):\n    {operation}\n\n"
        + _hung(name)
        + (
            f"    waits_for = {follows}\n"
            "    if pprank.rank in waits_for:\n"
            f"        fault_{tag}(waits_for[pprank.rank])\n"
        )
    )
    words = [r"deadlock", rf"fault_{tag}", *(names_rank(rank) for rank in ranks)]
    # it may be reported before grace period or deadline end: the deadlock is proven
    kinds = ("hung",) if len(ranks) == world else ("hung", "diverged")
    return Case(name, source, troubled("call", kinds, ranks, words), name.split("_", 2)[2])


@fault("mutual_recv")
def _mutual_recv(rng: random.Random, number: int, world: int) -> Case:
    ranks = rng.sample(range(world), 2)
    name = f"test_{number:03d}_mutual_recv"
    return _cycle(name, ranks, "dist.recv(torch.empty(3), src=other)", world)


@fault("mutual_wait")
def _mutual_wait(rng: random.Random, number: int, world: int) -> Case:
    ranks = rng.sample(range(world), 2)
    name = f"test_{number:03d}_mutual_wait"
    return _cycle(name, ranks, "dist.irecv(torch.empty(3), src=other).wait()", world)


@fault("cycle_of_three", ranks=3)
def _cycle_of_three(rng: random.Random, number: int, world: int) -> Case:
    ranks = rng.sample(range(world), 3)
    name = f"test_{number:03d}_cycle_of_three"
    return _cycle(name, ranks, "dist.recv(torch.empty(3), src=other)", world)


@fault("recv_against_barrier")
def _recv_against_barrier(rng: random.Random, number: int, world: int) -> Case:
    """One half of the circle is in the process group, the other half in the control plane."""
    culprit = rng.randrange(world)
    name = f"test_{number:03d}_recv_against_barrier"
    source = _hung(name) + (
        f"    if pprank.rank == {culprit}:\n"
        f"        dist.recv(torch.empty(3), src={(culprit + 1) % world})\n"
        "    else:\n"
        "        pprank.barrier()\n"
    )
    words = [r"barrier\(\)", name, *(names_rank(rank) for rank in range(world))]
    return Case(name, source, troubled("call", "hung", range(world), words), "recv_against_barrier")


_COLLECTIVES = {
    "all_reduce": "dist.all_reduce(torch.ones(4))",
    "broadcast": "dist.broadcast(torch.ones(4), src={other})",
    "barrier": "dist.barrier()",
    "all_gather": "dist.all_gather([torch.ones(4) for _ in range({world})], torch.ones(4))",
}


@fault("mismatched_collectives")
def _mismatched(rng: random.Random, number: int, world: int) -> Case:
    """Gloo may react in any way; the report must say that the operations did not match."""
    culprit = rng.randrange(world)
    one, other = rng.sample(sorted(_COLLECTIVES), 2)
    name = f"test_{number:03d}_mismatched_collectives"
    call = {
        word: text.format(other=(culprit + 1) % world, world=world)
        for word, text in _COLLECTIVES.items()
    }
    source = _hung(name) + (
        "    dist.all_reduce(torch.ones(4))\n"
        f"    if pprank.rank == {culprit}:\n"
        f"        {call[one]}\n"
        "    else:\n"
        f"        {call[other]}\n"
        "    pprank.barrier()\n"
    )
    words = [(kind, r"mismatch") for kind in ("hung", "diverged")]
    words += [(kind, rf"\b{word}\b") for kind in ("hung", "diverged") for word in (one, other)]
    expected = troubled("call", ("hung", "diverged", "failed", "died"), words=[name])
    return Case(name, source, replace(expected, words_of=tuple(words)), "mismatched_collectives")


@fault("mismatched_shapes")
def _mismatched_shapes(rng: random.Random, number: int, world: int) -> Case:
    culprit = rng.randrange(world)
    small, large = 4, rng.choice((8, 4096))
    name = f"test_{number:03d}_mismatched_shapes"
    source = _hung(name) + (
        f"    size = {large} if pprank.rank == {culprit} else {small}\n"
        "    dist.all_reduce(torch.ones(size))\n"
        "    pprank.barrier()\n"
    )
    words = [
        (kind, word) for kind in ("hung", "diverged") for word in (rf"\b{small}\b", rf"{large}")
    ]
    expected = troubled("call", ("hung", "diverged", "failed", "died"), words=[name])
    return Case(name, source, replace(expected, words_of=tuple(words)), "mismatched_shapes")


@fault("different_meetings")
def _different_meetings(rng: random.Random, number: int, world: int) -> Case:
    culprit = rng.randrange(world)
    name = f"test_{number:03d}_different_meetings"
    source = f"""\
def {name}(pprank):
    if pprank.rank == {culprit}:
        pprank.gather(1)
    else:
        pprank.barrier()
"""
    words = [r"barrier\(\)", r"gather\(\)", *(names_rank(rank) for rank in range(world))]
    return Case(name, source, troubled("call", "failed", words=words), "different_meetings")


@fault("import_error")
def _import_error(rng: random.Random, number: int, world: int) -> Case:
    culprit = rng.randrange(world)
    name = f"test_{number:03d}_import_error"
    source = f"""\
if os.environ.get("RANK") == "{culprit}":
    raise ImportError("not on this rank")

def {name}(pprank):
    pass
"""
    words = [rf"rank {culprit}", r"not on this rank"]
    expected = troubled("setup", "collection", words=words)
    return Case(name, source, expected, "import_error", alone=True)


# --- what a test leaves behind: it passes (or dies), and nothing may be found after the run -------

_SLEEPER = '[sys.executable, "-S", "-c", "import time; time.sleep(10**6)"]'
_LEFT = {
    "child": f"subprocess.Popen({_SLEEPER})",
    "child_with_own_session": f"subprocess.Popen({_SLEEPER}, start_new_session=True)",
    "children": f"for _ in range(5): subprocess.Popen({_SLEEPER})",
    "daemon": (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execv(sys.executable, {_SLEEPER})\n"
        "    os._exit(0)\n"
        "os.wait()"
    ),
    "child_without_environment": (
        f"subprocess.Popen({_SLEEPER}, env={{}}, start_new_session=True)"
    ),
    "thread": "threading.Thread(target=time.sleep, args=(10**6,)).start()",
    "listening_port": "globals()['kept'] = socket.create_server(('127.0.0.1', 0))",
    "shared_memory": "globals()['kept'] = shared_memory.SharedMemory(create=True, size=1000)",
    "shared_tensor": "globals()['kept'] = torch.ones(1000).share_memory_()",
    "temporary_files": (
        "import tempfile\n"
        "tempfile.mkdtemp(), tempfile.mkstemp()\n"
        "globals()['kept'] = tempfile.NamedTemporaryFile()"
    ),
}


def _leaves_behind(what: str, lines: str) -> None:
    @fault(f"leaves_{what}")
    def make(rng: random.Random, number: int, world: int) -> Case:
        peers = tuple(FINISH)
        scene = draw_scene(rng, number, world, ("call", "setup"), ("before", "after"), peers)
        name = f"leaves_{what}"
        if rng.random() < 0.5:
            source = write_scene(scene, name, lines)
            return case_of(scene, name, source, Expected())
        source = write_scene(scene, name, f"{lines}\nos._exit(80)")
        expected = troubled(scene.phase, "died", [scene.culprit], [r"code 80"])
        return case_of(scene, name, source, expected)


for _what, _lines in _LEFT.items():
    _leaves_behind(_what, _lines)


@fault("leaves_message")
def _leaves_message(rng: random.Random, number: int, world: int) -> Case:
    """Messages of two tests never match: one that was not received must not reach the next test."""
    sender, receiver = rng.sample(range(world), 2)
    name = f"test_{number:03d}_leaves_message"
    source = f"""\
def {name}(process_group, pprank):
    if pprank.rank == {sender}:
        dist.isend(torch.tensor([111.0]), dst={receiver})
"""
    again = f"""\
def {name}_own_message(process_group, pprank):
    value = torch.tensor([222.0])
    if pprank.rank == {sender}:
        dist.send(value, dst={receiver})
    if pprank.rank == {receiver}:
        dist.recv(value.zero_(), src={sender})
    assert value.item() == 222.0
"""
    after = Case(f"{name}_own_message", again, Expected())
    expected = Expected(FAILED, "call", ("failed",), words=("do not fit together",))
    return Case(name, source, expected, "leaves_message", after=after)


@fault("flood_and_pass")
def _flood_and_pass(rng: random.Random, number: int, world: int) -> Case:
    scene = draw_scene(rng, number, world, ("call", "setup", "teardown"), ("before",), ("finish",))
    lines = rng.choice(
        (
            'for n in range(60_000): print(n, "x" * 100)',
            'for n in range(100): os.write(1, b"x" * 99_999 + b"\\n")',
            'for n in range(100): os.write(2, b"no end of line" * 9_999)',
            "os.write(1, bytes(range(256)) * 10_000)",
        )
    )
    source = write_scene(scene, "flood_and_pass", lines)
    return case_of(scene, "flood_and_pass", source, Expected())
