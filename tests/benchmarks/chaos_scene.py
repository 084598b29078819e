"""The scene of a fault: which rank it strikes, in which phase, and what its peers do meanwhile."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

SETUP = ("setup", "module setup", "session setup")
TEARDOWN = ("teardown", "module teardown", "session teardown")
ANYWHERE = ("call", *SETUP, *TEARDOWN)

# What a peer does, and the word by which the report must say where it was.
BLOCKING = {
    "recv": "dist.recv(torch.empty(3), src={culprit})",
    "all_reduce": "dist.all_reduce(torch.ones(3))",
    "broadcast": "dist.broadcast(torch.ones(3), src={culprit})",
    "dist_barrier": "dist.barrier()",
    "loop": "while True: time.sleep(0.01)",
    "recv_or_loop": (
        "if pprank.rank == {first}:\n"
        "    dist.recv(torch.empty(3), src={culprit})\n"
        "while True: time.sleep(0.01)"
    ),
}
_RECV_SAYS = r"rank {first} waits in recv from rank {culprit} \(\S+ in peer_{tag}"
LEDGER_SAYS = {
    "recv": _RECV_SAYS,
    "recv_or_loop": _RECV_SAYS,
    "all_reduce": r"all_reduce #\d+ [^\n]*\(\S+ in peer_{tag}",
    "broadcast": r"broadcast #\d+ [^\n]*\(\S+ in peer_{tag}",
    "dist_barrier": r"barrier #\d+ [^\n]*\(\S+ in peer_{tag}",
}
"""What the peers wait for and on which line, in the words of the wait-for graph."""

MEETING = {"barrier": "pprank.barrier()", "gather": "pprank.gather(pprank.rank)"}
FINISH = {"finish": "pass"}
_NEEDS_NO_TORCH = {"loop", *MEETING, *FINISH}


@dataclass(frozen=True)
class Scene:
    """Where and when a fault strikes.

    `place`: one of ANYWHERE. `moment`: before, during or after a collective. `peers`: a key of
    BLOCKING, MEETING or FINISH. `torch`: whether there is a process group.
    """

    number: int
    world: int
    culprit: int
    place: str
    moment: str
    peers: str
    torch: bool

    @property
    def tag(self) -> str:
        """The number as used in names."""
        return f"{self.number:03d}"

    @property
    def facts(self) -> dict[str, object]:
        """Values for templates of texts about the peers."""
        return {"culprit": self.culprit, "first": self.others[0], "tag": self.tag}

    @property
    def phase(self) -> str:
        """The phase of the test that reports the fault."""
        return self.place.split()[-1]

    @property
    def others(self) -> list[int]:
        """The peers of the culprit."""
        return [rank for rank in range(self.world) if rank != self.culprit]

    @property
    def peers_block(self) -> bool:
        """Whether the peers wait for ever in something that can only be ended from outside."""
        return self.peers in BLOCKING

    @property
    def peers_meet(self) -> bool:
        """Whether the peers wait in the control plane, which releases them."""
        return self.peers in MEETING

    @property
    def fixtures(self) -> str:
        """The fixtures that the scene's function takes, in order."""
        return "process_group, pprank" if self.torch else "pprank"


def draw_scene(
    rng: random.Random,
    number: int,
    world: int,
    places: Sequence[str] = ANYWHERE,
    moments: Sequence[str] = ("before", "during", "after"),
    peers: Sequence[str] = (*BLOCKING, *MEETING, *FINISH),
) -> Scene:
    """Draw one of the scenes that a fault allows."""
    doing = rng.choice(peers)
    moment = rng.choice(moments)
    with_torch = doing not in _NEEDS_NO_TORCH or moment == "during" or rng.random() < 0.5
    # half of all faults strike in the call, which is more common than the other places
    place = "call" if "call" in places and rng.random() < 0.5 else rng.choice(places)
    return Scene(number, world, rng.randrange(world), place, moment, doing, with_torch)


def name_of(scene: Scene, name: str) -> str:
    """Return the name of the test function."""
    return f"test_{scene.tag}_{name}"


def write_scene(
    scene: Scene,
    name: str,
    fault: str,
    *,
    meanwhile: str = "",
    marks: Sequence[str] = (),
) -> str:
    """Return the source of the test `name_of(scene, name)`; `fault`: the culprit's lines.

    `meanwhile`: what the culprit does if its fault strikes from a thread, during a collective.
    """
    tag = scene.tag
    doing = {**BLOCKING, **MEETING, **FINISH}[scene.peers].format(**scene.facts)
    blocks = [
        _function(f"fault_{tag}(pprank)", fault + (f"\n{meanwhile}" if meanwhile else "")),
        _function(f"peer_{tag}(pprank)", doing),
        _function(f"scene_{tag}(pprank)", _scene_body(scene)),
        _test(scene, name_of(scene, name), marks),
    ]
    return "\n\n".join(blocks) + "\n"


def _scene_body(scene: Scene) -> str:
    together = "dist.all_reduce(torch.ones(3))" if scene.torch else "pprank.barrier()"
    lines = [together] if scene.moment == "after" else []
    tag = scene.tag
    if scene.place == "session setup":
        # a test after this one uses the fixture again, in a group that must rebuild it
        lines = [f"if not first_group(pprank, '{tag}'):", "    return", *lines]
    lines += [
        f"if pprank.rank == {scene.culprit}:",
        f"    fault_{tag}(pprank)",
        "else:",
        f"    peer_{tag}(pprank)",
    ]
    return "\n".join(lines)


def _test(scene: Scene, name: str, marks: Sequence[str]) -> str:
    tag, fixtures = scene.tag, scene.fixtures
    marked = "".join(f"@pytest.mark.{mark}\n" for mark in marks)
    if scene.place == "call":
        return marked + _function(f"{name}({fixtures})", f"scene_{tag}(pprank)")
    scope = scene.place.split()[0] if " " in scene.place else "function"
    body = [f"scene_{tag}(pprank)", "yield"]
    if scene.phase == "teardown":
        body.reverse()
    fixture = _function(f"broken_{tag}({fixtures})", "\n".join(body))
    test = _function(f"{name}(broken_{tag}, pprank)", "pass")
    return f'@pytest.fixture(scope="{scope}")\n{fixture}\n\n{marked}{test}'


def _function(head: str, body: str) -> str:
    return f"def {head}:\n{textwrap.indent(body, '    ')}"
