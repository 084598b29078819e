"""Draws the tests of a chaos run: each fault of the catalogue in turn, healthy ones in between."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence

# each registers its faults in the catalogue
import chaos_deadly_faults  # noqa: F401
import chaos_group_faults  # noqa: F401
import chaos_lonely_faults  # noqa: F401
from chaos_case import PASSED, SKIPPED, XFAILED, Case, Expected, Run
from chaos_catalogue import FAULTS

_HEALTHY = {
    "all_reduce": (
        "process_group, pprank",
        "total = torch.tensor([float(pprank.rank)])\n"
        "dist.all_reduce(total)\n"
        "assert total.item() == sum(range(pprank.world_size))",
    ),
    "ring": (
        "process_group, pprank",
        "size = pprank.world_size\n"
        "got = torch.empty(1)\n"
        "work = dist.irecv(got, src=(pprank.rank - 1) % size)\n"
        "dist.send(torch.tensor([float(pprank.rank)]), dst=(pprank.rank + 1) % size)\n"
        "work.wait()\n"
        "assert got.item() == (pprank.rank - 1) % size",
    ),
    "broadcast": (
        "process_group, pprank",
        "value = torch.tensor([float(pprank.rank + 7)])\n"
        "dist.broadcast(value, src=pprank.world_size - 1)\n"
        "assert value.item() == pprank.world_size + 6",
    ),
    "gather": ("pprank", "assert pprank.gather(pprank.rank) == list(range(pprank.world_size))"),
    "control_broadcast": ("pprank", "assert pprank.broadcast(pprank.rank * 2, src=1) == 2"),
    "uneven": (
        "process_group, pprank",
        "if pprank.rank == 0:\n    time.sleep(0.3)\ndist.barrier()",
    ),
    "prints": (
        "pprank, capsys",
        'print("said by", pprank.rank)\nassert capsys.readouterr().out.startswith("said by")',
    ),
    "own_folder": ("pprank, tmp_path", '(tmp_path / "file").write_text(str(pprank.rank))'),
    "child": (
        "pprank",
        'subprocess.run([sys.executable, "-S", "-c", "print(1)"], check=True)',
    ),
    "trivial": ("pprank", "pass"),
    "plain": ("", "assert 'RANK' not in os.environ"),
    "skipped": ("pprank", "pytest.skip('on all ranks')"),
    "xfailed": ("pprank", "pytest.xfail('on all ranks')"),
}
_STATUS = {"skipped": SKIPPED, "xfailed": XFAILED}


def draw_runs(
    seed: int, faults: int, worlds: Sequence[int], per_run: int, only: Sequence[str] = ()
) -> list[Run]:
    """Return pytest runs with `faults` faults in total, `per_run` in each, on `worlds` ranks.

    The same arguments give the same runs. Each fault of the catalogue is used once before any is
    used again; `only` restricts the catalogue.
    """
    rng = random.Random(seed)
    names = _names(rng, faults, max(worlds), only)
    runs: list[Run] = []
    for start in range(0, faults, per_run):
        chosen = names[start : start + per_run]
        least = max(FAULTS[name].ranks for name in chosen)
        world = rng.choice([world for world in sorted(worlds) if world >= least])
        cases: list[Case] = []
        for number, name in enumerate(chosen, start):
            cases.append(_draw(rng, name, number, world, any(case.last for case in cases)))
        runs.append(Run(len(runs), world, _files(rng, cases)))
    return runs


def _names(rng: random.Random, count: int, ranks: int, only: Sequence[str]) -> list[str]:
    deck = [name for name in sorted(only or FAULTS) if FAULTS[name].ranks <= ranks]
    names: list[str] = []
    while len(names) < count:
        rng.shuffle(deck)
        names += deck
    return names[:count]


def _draw(rng: random.Random, name: str, number: int, world: int, last_taken: bool) -> Case:
    make = FAULTS[name].make
    case = make(rng, number, world)
    while case.last and last_taken:  # only one test can be the last one
        case = make(rng, number, world)
    return case


def _files(rng: random.Random, cases: list[Case]) -> dict[str, list[Case]]:
    """Distribute the cases over files, with one or two healthy tests after most faults."""
    files: list[list[Case]] = [[]]
    for case in sorted(cases, key=lambda case: case.last):
        if case.alone or len(files[-1]) > 8:
            files.append([])
        files[-1] += [case, *([case.after] if case.after else [])]
        if case.alone:
            files.append([])
        if not case.last:
            again = rng.choice((0, 1, 1, 2))
            files[-1] += [_healthy(rng, case, number) for number in range(again)]
    return {f"test_{n:02d}.py": file for n, file in enumerate(filter(None, files))}


def _healthy(rng: random.Random, before: Case, again: int) -> Case:
    word = rng.choice(sorted(_HEALTHY))
    fixtures, body = _HEALTHY[word]
    name = f"test_{before.name.split('_')[1]}_{again}_{word}"
    source = f"def {name}({fixtures}):\n{textwrap.indent(body, '    ')}\n"
    return Case(name, source, Expected(_STATUS.get(word, PASSED)))
