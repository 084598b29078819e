"""Assertions for ranked tests, importable from `pytest_pprank`.

Each failure is an AssertionError. Its message names the field, the object and the rank, what was
found, what was expected, and the usual cause. torch and SGLang are imported only when an assertion
is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.rank.context import current_rank, is_rank
from pytest_pprank.rank.portable import pickled

if TYPE_CHECKING:
    import torch

    from pytest_pprank.sglang.compat.objects import ScheduleBatch, Scheduler
    from pytest_pprank.sglang.driver.messages import Result
    from pytest_pprank.sglang.stage.profiler import ProfilerRun


class UnknownObjectError(UsageError, TypeError):
    """An assertion was called on an object of a type that it cannot check."""


def assert_materialized_on_device(
    obj: object, *, fields: Iterable[str] | None = None, device: str | torch.device | None = None
) -> None:
    """Assert that a tensor, or each tensor that a batch needs for its forward, is on the device.

    `obj`: a torch.Tensor, or SGLang's ScheduleBatch or ForwardBatch
    (`pytest_pprank.sglang.batches.fields` lists what is expected of each field). `fields` limits
    the check of a batch to the named fields, in a list or tuple. `device` defaults to this rank's.

    For a batch, two more conditions are checked: host mirrors equal their device field, and a field
    whose staged copy was seen equals that copy. A tensor in a field that the table does not list is
    an error.

    On device ``sim`` a tensor is also refused if a copy into it, or another write, is not ordered
    before the current stream. ``cuda`` cannot be asked for that order. On ``cpu`` host and device
    memory are the same: a forgotten ``.to(device)``, or a copy still in flight, cannot be seen;
    only a missing or wrong tensor can.
    """
    __tracebackhide__ = True
    import torch

    from pytest_pprank.sglang.batches.materialize import bad_tensor, check_batch, table_of

    if isinstance(fields, str):
        raise UsageError(
            f"assert_materialized_on_device: fields={fields!r} is a str; fields takes names in a "
            f"list or tuple: fields=[{fields!r}]"
        )
    where = torch.device(device if device is not None else _own_device(obj))
    if isinstance(obj, torch.Tensor):
        _no_fields("assert_materialized_on_device", fields)
        finding = bad_tensor(obj, "value", "tensor", where)
        _fail_on("not materialized on the device", [finding] if finding else [])
        return
    table = table_of(obj)
    if table is None:
        raise UnknownObjectError(
            f"assert_materialized_on_device: {_type(obj)} is not known; it takes a torch.Tensor, "
            "or SGLang's ScheduleBatch or ForwardBatch"
        )
    wanted = None if fields is None else list(fields)
    for name in wanted or ():
        if name not in table:
            raise UsageError(
                f"assert_materialized_on_device: {type(obj).__name__} has no tensor field "
                f"{name!r}{did_you_mean(name, table)}"
            )
    _fail_on("not materialized on the device", check_batch(obj, table, where, wanted))


def assert_no_pending_copies(obj: object = None) -> None:
    """Assert that the host has waited for all copies between host and device.

    Then a download may be read, and a staging buffer written again.

    `obj`: a tensor, or SGLang's ScheduleBatch or ForwardBatch: only copies into it, or out of its
    host tensors, are checked. Without `obj`, all copies of this rank are.

    On device ``sim`` a copy is pending until the host has waited for it (by an event, a stream or
    the device), however long ago it began. On ``cuda`` the check asks whether all work on the
    current stream is done, whatever `obj` is; copies on other streams are not seen. On ``cpu``
    there are no such copies.
    """
    __tracebackhide__ = True
    import torch

    from pytest_pprank.devices.pending import pending_copies
    from pytest_pprank.sglang.batches.materialize import table_of, tensors_of

    if obj is None:
        tensors = None
    elif isinstance(obj, torch.Tensor):
        tensors = [("tensor", obj)]
    elif table_of(obj) is not None:
        tensors = list(tensors_of(obj))
    else:
        raise UnknownObjectError(
            f"assert_no_pending_copies: {_type(obj)} is not known; it takes a torch.Tensor, "
            "SGLang's ScheduleBatch or ForwardBatch, or nothing"
        )
    _fail_on("copies are still under way", pending_copies(tensors))


def assert_staging_consumed(batch: ScheduleBatch) -> None:
    """Assert that a ScheduleBatch has no staged copy left that its forward should have consumed.

    The batch's next step would upload such a copy again.
    """
    __tracebackhide__ = True
    from pytest_pprank.sglang.batches.fields import SCHEDULE_BATCH
    from pytest_pprank.sglang.batches.materialize import check_staging, table_of

    if table_of(batch) is not SCHEDULE_BATCH:
        raise UnknownObjectError(
            f"assert_staging_consumed: {_type(batch)} is not known; it takes SGLang's ScheduleBatch"
        )
    _fail_on("staging not consumed", check_staging(batch))


def assert_ranks_agree(value: object, *, what: str | None = None) -> None:
    """Assert that all ranks have the same value.

    All ranks must call it. Tensors and numpy arrays (also inside lists, tuples and dicts) are
    compared by dtype, shape and contents; NaN equals NaN. `what` names the value in the failure.
    The value is sent over the control plane. Raises UsageError for a value that cannot be pickled,
    or whose type cannot be compared.
    """
    __tracebackhide__ = True
    payloads = current_rank().gather(pickled(value, "assert_ranks_agree"))
    values = [pickle.loads(payload) for payload in payloads]
    groups: list[tuple[object, list[int]]] = []
    for rank, found in enumerate(values):
        for known, ranks in groups:
            if _equal(known, found):
                ranks.append(rank)
                break
        else:
            groups.append((found, [rank]))
    if len(groups) > 1:
        lines = [f"  {_ranks(ranks)}: {found!r}" for found, ranks in groups]
        raise AssertionError("\n".join([f"ranks disagree on {what or 'the value'}:", *lines]))


def assert_kv_balanced(scheduler: Scheduler, *, allow_failed_rooms: bool = False) -> None:
    """Assert that a Scheduler has no request left, and that all its KV and request slots are free.

    Every queue, batch and microbatch slot must be empty, all request slots free, all KV tokens free
    or evictable, and none locked. The failure names the requests that hold something. It also names
    their last forward, as far as `engine` or `disagg` has run them, and the line that allocated, as
    far as sanitizer `kv` has seen it. Checks this rank only: call it on each.

    For prefill and decode, all metadata slots must be free, and the KV manager must know no room.
    With `allow_failed_rooms`, failed rooms are allowed: SGLang (0.5.21) does not remove all of
    them.

    Usual cause of a failure: a path that ends a request (abort, error, retraction, profiling)
    without release_kv_cache, or a prefix that is locked and never unlocked.
    """
    __tracebackhide__ = True
    from pytest_pprank.sglang.stage.idle import idle_problems

    _must_be_scheduler("assert_kv_balanced", scheduler)
    problems = idle_problems(scheduler, failed_rooms=not allow_failed_rooms)
    if problems:
        cause = "usual cause: a path that ends a request without release_kv_cache"
        raise AssertionError("\n  ".join([f"KV is not balanced{_here()}:", *problems, cause]))


def assert_tokens_equal_reference(outputs: Result | Iterable[Result]) -> None:
    """Assert that tokens (and logprobs, hidden states) are those of the same model in transformers.

    `outputs`: what ``engine.generate`` returns, or one Result. All ranks must call it. The first
    rank computes the reference, once per prompt and output. A failure shows the first token that
    differs, with both logits; tokens whose logits differ by less than rounding are called a tie.
    Each token is compared given the tokens before it. In float32 it must be the reference's best;
    in float16 its logit may be 0.1 below the best, in bfloat16 0.5 (docs/devices.md says why).
    Logprobs and hidden states, if requested, must equal the reference's up to rounding. An aborted
    request is compared as far as it went. The reference follows penalties, ``logit_bias`` and
    ``min_new_tokens``, and with ``sampling_seed`` also ``temperature``, if
    ``enable_deterministic_inference`` is set. With sanitizer `kv`, on a CPU, the failure also says
    for each rank in which layer and at which tokens the KV of such a request begins to differ.

    Usual cause: KV of the wrong place, a skipped chunk or layer, or tokens that one stage received
    late.
    """
    __tracebackhide__ = True
    rank = current_rank()
    from pytest_pprank.sglang.driver.messages import Result

    results = [outputs] if isinstance(outputs, Result) else list(outputs)
    if not results or not all(isinstance(result, Result) for result in results):
        raise UsageError(
            f"assert_tokens_equal_reference: takes what engine.generate returned, not {outputs!r}"
        )
    from pytest_pprank.sglang.model.reference import all_findings, check_predictable

    check_predictable(results)
    if found := all_findings(results, rank):
        lines = ["tokens differ from the reference (transformers on CPU):", *found]
        raise AssertionError("\n  ".join(lines))


def assert_profiler_ready(scheduler: Scheduler) -> None:
    """Assert that SGLang's dynamic-chunk profiler, run again, works on every stage.

    All stages must call it. Each batch is checked where it enters the model. A failure that SGLang
    only logs as a warning counts. Afterwards the predictor must be usable and the same on all
    stages, and the KV pool as before. The profiler runs on a virtual clock, on which its latency
    fit is exact. Needs ``@pytest.mark.sglang(enable_dynamic_chunking=True)``.
    """
    __tracebackhide__ = True
    from pytest_pprank.sglang.compat.profiler import predict_chunk
    from pytest_pprank.sglang.stage.idle import free_tokens
    from pytest_pprank.sglang.stage.profiler import (
        dynamic_chunking_enabled,
        profiler_name,
        run_profiler,
    )
    from pytest_pprank.sglang.stage.stage import this_stage

    _must_be_scheduler("assert_profiler_ready", scheduler)
    if not dynamic_chunking_enabled(scheduler):
        raise UsageError(
            "assert_profiler_ready: this Scheduler runs without dynamic chunking; mark the test "
            "with @pytest.mark.sglang(enable_dynamic_chunking=True) and give at least 2 stages"
        )
    free = free_tokens(scheduler)
    run = run_profiler(scheduler)
    predictions = [predict_chunk(scheduler, history) for history in (0, 512, 1024)]
    problems = _profiler_problems(run, predictions[0], free - free_tokens(scheduler))
    if not problems:
        first = this_stage().started(scheduler).profiler_run.problems()
        problems = [f"while the Scheduler started (a second run was fine): {p}" for p in first]
    reports = current_rank().gather((problems, predictions))
    _fail_on_reports({rank: report for rank, (report, _) in enumerate(reports)})
    what = f"chunk sizes predicted after 0, 512 and 1024 tokens ({profiler_name()})"
    assert_ranks_agree(predictions, what=what)


def _profiler_problems(run: ProfilerRun, prediction: int | None, leaked: int) -> list[str]:
    """Return the problems of a profiler run, the earliest cause first."""
    problems = run.problems()
    if not run.ran:
        problems.append("the profiler's entry was not called")
    if prediction is None:
        after = f" after {run.entry}" if run.entry else ""
        problems.append(f"no usable predictor{after}: dynamic chunking is off")
    if leaked:
        problems.append(f"KV pool: {leaked} tokens were not given back by the profiler")
    return problems


def _fail_on_reports(reports: Mapping[int, Sequence[str]]) -> None:
    """Raise the same AssertionError, with all reports, on every rank if any rank has a report."""
    __tracebackhide__ = True
    if not any(reports.values()):
        return
    lines = ["the PP dynamic-chunk profiler is not ready:"]
    # Ranks that only waited report the least: the rank that ran the forwards comes first.
    for rank in sorted(reports, key=lambda rank: -len(reports[rank])):
        if reports[rank]:
            lines.append(f"on rank {rank} ({current_rank().sizes.role_of(rank).stage_name(rank)}):")
            lines += ["  " + problem.replace("\n", "\n  ") for problem in reports[rank]]
    raise AssertionError("\n".join(lines))


def _fail_on(what: str, findings: Sequence[object]) -> None:
    __tracebackhide__ = True
    if findings:
        items = [str(finding).replace("\n", "\n  ") for finding in findings]
        raise AssertionError("\n  ".join([f"{what}{_here()}:", *items]))


def _here() -> str:
    """Return which rank this is, in words; empty outside a worker group."""
    if not is_rank():
        return ""
    return f" on {current_rank().bracketed}"


def _own_device(obj: object) -> str | torch.device:
    if is_rank():
        return current_rank().device
    from pytest_pprank.sglang.compat.batches import device_of

    return device_of(obj)


def _no_fields(name: str, fields: Iterable[str] | None) -> None:
    __tracebackhide__ = True
    if fields is not None:
        raise UsageError(f"{name}: fields= is for a ScheduleBatch or ForwardBatch, not a tensor")


def _must_be_scheduler(name: str, scheduler: Scheduler) -> None:
    __tracebackhide__ = True
    from pytest_pprank.sglang.compat.scheduler import is_scheduler

    if not is_scheduler(scheduler):
        raise UnknownObjectError(
            f"{name}: {_type(scheduler)} is not known; it takes SGLang's Scheduler, as the fixture "
            "'scheduler' gives it"
        )


def _type(obj: object) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _equal(left: Any, right: Any) -> bool:
    __tracebackhide__ = True
    import numpy as np
    import torch

    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return _equal_tensors(left, right)
    if isinstance(left, np.ndarray):
        same = left.dtype == right.dtype and left.shape == right.shape
        return bool(same) and _equal(left.tolist(), right.tolist())
    if isinstance(left, dict):
        return left.keys() == right.keys() and _equal(
            list(left.values()), [right[key] for key in left]
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    try:
        return bool(left == right) or bool(left != left and right != right)  # the latter: NaN
    except Exception as error:
        raise UsageError(
            f"assert_ranks_agree: values of type {_type(left)} cannot be compared "
            f"(== raises {type(error).__name__}: {error})"
        ) from error


def _equal_tensors(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Compare dtype, shape and contents, NaN equal to NaN; torch.equal has no such option."""
    from torch.testing import assert_close

    try:
        assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ",".join(map(str, ranks))
