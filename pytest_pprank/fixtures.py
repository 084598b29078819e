"""The fixtures of ranked tests. Each works on every stage and builds SGLang's real objects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank._pytest_compat import discard_logs_on_success, wants_full_tracebacks
from pytest_pprank.errors import PprankError
from pytest_pprank.rank.context import SERVER_ARGS, current_rank

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import (
        ForwardBatch,
        Prompt,
        Req,
        ScheduleBatch,
        Scheduler,
    )
    from pytest_pprank.sglang.driver.disagg import Disagg
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.stage.observe import Observe


@pytest.fixture
def _pprank_size(request: pytest.FixtureRequest) -> object:
    """The pipeline stages, by role, on which this instance of a ranked test runs."""
    return request.param


@pytest.fixture(scope="session")
def pprank() -> Pprank:
    """This rank: `rank`, `world_size`, `stage`, `num_stages`, `role`, `role_index`, `device`,
    `is_first_stage`, `is_last_stage`, `workdir`; with several ranks of a stage `coordinates`,
    `tp_rank`, `tp_size`, and so with `dp` and `ep`; `barrier()`, `gather(obj)`, `broadcast(obj,
    src=0)`, which use connections of pytest's own and never the process groups under test; and
    `kill(ranks)`.
    """
    return current_rank()


@pytest.fixture(scope="session")
def process_group(pprank: Pprank) -> Iterator[ProcessGroup]:
    """The default torch.distributed group, initialised: gloo on cpu, NCCL on cuda.

    It lives as long as the worker group; rank and size are those of `pprank`.
    """
    from pytest_pprank.rank.process_group import default_group

    yield from default_group(pprank)


@pytest.fixture(scope="session")
def tiny_model(pprank: Pprank, request: pytest.FixtureRequest) -> Path:
    """Folder of a tiny random model, seeded, in which wrong KV gives wrong tokens: a Llama (with DP
    attention a Qwen3, with expert parallelism one of its MoE models), or what
    ``@pytest.mark.sglang(model_path="tiny:NAME")`` asks for.

    It has 4 layers, or one per stage if there are more stages, or the number of layers in
    ``"tiny:NAME:LAYERS"``. It is written once per run (safetensors).
    """
    from pytest_pprank.sglang.model.tiny import tiny_model_for
    from pytest_pprank.sglang.static.arguments import args_of_role
    from pytest_pprank.sglang.static.release import tiny_asked

    given = args_of_role(request.config.stash[SERVER_ARGS], pprank.role).get("model_path")
    return tiny_model_for(pprank, str(given) if tiny_asked(given) else None)


@pytest.fixture(scope="session")
def sglang_args(pprank: Pprank, request: pytest.FixtureRequest) -> Mapping[str, object]:
    """SGLang's server args of this worker group, read-only: defaults for the tiny model, changed by
    ``@pytest.mark.sglang(...)``.

    Tests with other args run in another worker group.
    """
    from pytest_pprank.sglang.static.arguments import (
        args_of_role,
        default_server_args,
        disagg_args,
        merge,
        shares_args,
    )
    from pytest_pprank.sglang.static.release import server_arg_names, tiny_asked

    changes = dict(args_of_role(request.config.stash[SERVER_ARGS], pprank.role))
    given = changes.pop("model_path", None)
    if given is None or tiny_asked(given):
        given = request.getfixturevalue("tiny_model")
    defaults = default_server_args(
        num_stages=pprank.num_stages,
        tp_size=pprank.tp_size,
        device=pprank.device,
        model_path=str(given),
    )
    of_role = disagg_args(pprank.role, pprank.device, server_arg_names())
    shares = shares_args(pprank.dp_size, pprank.ep_size, server_arg_names())
    return MappingProxyType(merge(defaults, of_role, shares, changes))


@pytest.fixture(scope="session")
def _started_scheduler(
    sglang_args: Mapping[str, object], pprank: Pprank, request: pytest.FixtureRequest
) -> Scheduler:
    __tracebackhide__ = True
    from pytest_pprank.sglang.stage.scheduler import start_scheduler
    from pytest_pprank.sglang.stage.start_failure import start_failed
    from pytest_pprank.sglang.static.arguments import args_of_role

    try:
        with discard_logs_on_success(request.config):
            return start_scheduler(sglang_args, pprank)
    except PprankError:
        raise
    except Exception as error:
        changes = args_of_role(request.config.stash[SERVER_ARGS], pprank.role)
        failure = start_failed(error, changes, pprank.sizes.role_of(pprank.rank))
        raise failure from (error if wants_full_tracebacks(request.config) else None)


@pytest.fixture
def scheduler(_started_scheduler: Scheduler, pprank: Pprank) -> Iterator[Scheduler]:
    """The real SGLang Scheduler of this stage, with all its mixins, started and idle.

    There is one per worker group. What a test leaves behind (requests, KV, locks) is reported in a
    warning, and the Scheduler is reset to its state after the start. If the reset fails, the worker
    group is replaced.
    """
    from pytest_pprank.devices.sim.untracked import wait_for_device
    from pytest_pprank.sglang.events.hook_points import hook_points
    from pytest_pprank.sglang.stage.idle import drop_new_attributes, idle_problems, reset_scheduler

    wait_for_device()
    # before a test, not after it: fixtures that are torn down later may undo their own changes
    drop_new_attributes(_started_scheduler)
    hook_points.refresh()  # the Scheduler's start may have imported more classes to wrap
    yield _started_scheduler
    left = idle_problems(_started_scheduler)
    reset_scheduler(_started_scheduler)
    if left and not pprank.failed and not pprank.spoiled:
        warnings.warn(
            f"rank {pprank.rank}: this test left the Scheduler busy: {'; '.join(left)}",
            stacklevel=1,
        )
    for problem in idle_problems(_started_scheduler):
        pprank.spoil(f"the Scheduler is not idle after its reset: {problem}")


@pytest.fixture
def engine(scheduler: Scheduler, pprank: Pprank) -> Iterator[Engine]:
    """Requests through SGLang's real event loops, all stages in lockstep.

    ``engine.generate(prompts)`` returns the same results on every rank. Requests that a test leaves
    unfinished are aborted.
    """
    from pytest_pprank.host.lifecycles import at_quiescence, engine_created
    from pytest_pprank.sglang.driver.engine import Engine

    engine = Engine(scheduler, pprank)
    engine_created(engine)
    yield engine
    engine.close()
    if engine.settled:
        at_quiescence(scheduler, pprank)


@pytest.fixture
def observe(pprank: Pprank) -> Iterator[Observe]:
    """Records the calls of SGLang's hook points on this rank: ``observe.calls(name)`` returns them,
    ``observe.on(name, callback)`` calls back, ``observe.seams`` has the names.

    SGLang's methods are wrapped only in tests that use this fixture.
    """
    from pytest_pprank.sglang.stage.observe import Observe

    observe = Observe(pprank)
    yield observe
    observe.close()


@pytest.fixture
def disagg(scheduler: Scheduler, pprank: Pprank) -> Iterator[Disagg]:
    """Requests through the real event loops of prefill and decode, all stages in lockstep, with the
    real transfer of KV between them.

    ``disagg.generate(prompts)`` returns on every rank what decode has produced.
    """
    from pytest_pprank.host.lifecycles import at_quiescence, engine_created
    from pytest_pprank.sglang.driver.disagg import Disagg

    disagg = Disagg(scheduler, pprank)
    engine_created(disagg)
    yield disagg
    disagg.close()
    if disagg.settled:
        at_quiescence(scheduler, pprank)


@pytest.fixture
def make_req(scheduler: Scheduler) -> Callable[..., Req]:
    """Makes real `Req`s with greedy sampling: ``make_req(input_ids=[...])`` or
    ``make_req(prompt_len=N)``, with `max_new_tokens` and `rid`.

    The same calls give the same requests on every rank.
    """
    from pytest_pprank.sglang.batches import build as batches

    return partial(batches.make_req, scheduler)


@pytest.fixture
def make_schedule_batch(scheduler: Scheduler) -> Iterator[Callable[..., ScheduleBatch]]:
    """Makes real `ScheduleBatch`es: ``make_schedule_batch([5, 17], mode="extend"|"decode",
    chunk=None)``, where a prompt is a length, a list of token ids or a `Req`.

    What a batch owns (KV, request slots, locks) is freed after the test.
    """
    from pytest_pprank.sglang.batches import build as batches

    made: list[tuple[ScheduleBatch, list[Req]]] = []

    def make(prompts: Sequence[Prompt | Req], **options: Any) -> ScheduleBatch:
        __tracebackhide__ = True
        batch = batches.make_schedule_batch(scheduler, prompts, **options)
        made.append((batch, list(batch.reqs)))  # a test may filter some of them out
        return batch

    yield make
    for batch, reqs in made:
        batches.release_reqs(scheduler, [*reqs, *batch.reqs])


@pytest.fixture
def schedule_batch(make_schedule_batch: Callable[..., ScheduleBatch]) -> ScheduleBatch:
    """A real extend batch of 5, 17 and 40 tokens, whose ids are still staged on the host."""
    return make_schedule_batch([5, 17, 40])


@pytest.fixture
def make_forward_batch(scheduler: Scheduler) -> Callable[[ScheduleBatch], ForwardBatch]:
    """Makes a real `ForwardBatch` as SGLang's run_batch does: ``make_forward_batch(batch)``
    resolves the staged inputs and calls `ForwardBatch.init_new`.
    """
    from pytest_pprank.sglang.batches import build as batches

    return partial(batches.make_forward_batch, scheduler)
