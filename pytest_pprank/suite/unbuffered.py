"""The order in which stages send and receive, if nothing keeps a message on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    import pytest

    from pytest_pprank import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler

SEND, RECV = "sends to the next stage", "receives from the previous stage"


def note_order(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of what this stage sends and receives from now on: tensors between stages."""
    order: list[str] = []
    group = need(scheduler, "pp_group")
    for name, what in (("send_tensor_dict", SEND), ("recv_tensor_dict", RECV)):
        monkeypatch.setattr(group, name, _noting(need(group, name), what, order))
    return order


def _noting(original: object, what: str, order: list[str]) -> object:
    def call(*args: object, **kwargs: object) -> object:
        order.append(what)
        return original(*args, **kwargs)  # type: ignore[operator]

    return call


def orders_of_stages(pprank: Pprank, order: list[str]) -> list[list[str]]:
    """Return the orders of all stages of this rank's role; a call of all ranks together."""
    ring = (pprank.role, pprank.tp_rank)
    noted = pprank.gather((ring, pprank.stage, order))
    return [each for _, each in sorted((stage, each) for of, stage, each in noted if of == ring)]


def blocked(orders: Sequence[Sequence[str]]) -> Mapping[int, str]:
    """Return what each stage waits in for ever if a send ends only when it is received.

    `orders`: by stage, SEND and RECV in the order of their issue. Empty if nothing waits.
    """
    stages = len(orders)
    at = [0] * stages

    def waits_in(stage: int) -> str | None:
        return orders[stage][at[stage]] if at[stage] < len(orders[stage]) else None

    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            after = (stage + 1) % stages
            while waits_in(stage) == SEND and waits_in(after) == RECV:
                at[stage] += 1
                at[after] += 1
                moved = True
    return {
        stage: f"{what}, as its message number {at[stage] + 1} of {len(orders[stage])}"
        for stage in range(stages)
        if (what := waits_in(stage)) is not None
    }
