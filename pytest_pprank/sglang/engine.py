"""Requests through SGLang's real event loops, all stages in step: the `engine` fixture."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import PeerError, UsageError
from pytest_pprank.sglang.batches import made_up_prompt, token_ids
from pytest_pprank.sglang.engine_loop import LoopThread
from pytest_pprank.sglang.engine_messages import (
    Output,
    Result,
    abort_request,
    generate_request,
    outputs_of,
    sampling_of,
)
from pytest_pprank.sglang.engine_seams import (
    Attachment,
    SchedulerHook,
    check_engine_args,
    enter_loop,
    settle_sends,
)
from pytest_pprank.sglang.engine_views import Forward, StageView, forward_of, view_stage
from pytest_pprank.sglang.holders import holders, note_forward
from pytest_pprank.sglang.seams import need

if TYPE_CHECKING:
    from pytest_pprank.worker.handle import Pprank

_STALLED = 48
"""Iterations per microbatch slot without progress after which nothing will come any more."""
_WHERE = ("any", "all")


class EngineStalled(AssertionError):
    """Requests are under way, and SGLang's event loops do nothing for them."""


class EventLoopFailed(AssertionError):
    """SGLang's event loop raised on this stage; the cause is the exception itself."""


@dataclass
class _Report:
    """What a rank brings to a meeting of the engine."""

    calls: tuple[str, ...]
    view: StageView
    outputs: list[Output] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    holds: bool = False


class Engine:
    """Drives the real event loop of every stage; all methods are calls of all ranks together.

    A request goes in through the socket on which SGLang's tokenizer manager sends it, and its
    tokens come out of the one on which that manager gets them; the ranks share them through
    pytest's control plane. Between two calls the loops stand still, so that everything about
    `scheduler` can be looked at and changed on every stage.

    *Iterations.* One iteration is one turn of the loop: with pipeline parallelism one microbatch
    slot (there are `num_stages` of them, taken in turn), else one batch. Between two calls stage P
    has done P iterations less than the first stage. That is SGLang's own order of events and not a
    choice: in iteration i stage P waits for an output that stage P-1 sends in its iteration i+1.

    *Divergence.* After each step all ranks meet. A stage that does not come back from its loop, or
    a rank that does something else, is reported by name, as at any missed meeting; ranks that ask
    for different requests get a UsageError.

    Attributes, the same on all ranks: `results` (request id to Result), `stages` (what each stage
    held after the last step). Of this rank: `scheduler`, `forwards` (each forward of this stage).
    """

    def __init__(self, scheduler: Any, pprank: Pprank) -> None:
        check_engine_args(scheduler)
        self.scheduler = scheduler
        self.results: dict[str, Result] = {}
        self.stages: tuple[StageView, ...] = ()
        self.forwards: list[Forward] = []
        self._pprank = pprank
        self._serial = itertools.count()
        self._calls: list[str] = []
        self._granted = 0
        self._told = 0
        self._loop: LoopThread | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._attachment = Attachment(scheduler, SchedulerHook(self._at_top, self._at_forward))

    # what goes in

    def generate(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int = 8,
        *,
        logprobs: bool = False,
        max_iterations: int | None = None,
        **sampling: Any,
    ) -> list[Result]:
        """Send all `prompts` at once, run until every request is done, and return their results.

        A prompt is a list of token ids, or a length for made-up ids (see `submit`). `sampling`:
        fields of SGLang's SamplingParams; the default is greedy, and goes on at an end-of-text
        token. Requests that were submitted before are finished, too. Raises EngineStalled.
        """
        __tracebackhide__ = True
        if isinstance(prompts, (str, int)) or not isinstance(prompts, Sequence) or not prompts:
            raise UsageError(
                "engine.generate: prompts must be a list with at least one prompt, each a list of "
                f"token ids or a length, not {prompts!r}"
            )
        options = {"logprobs": logprobs, "stream": False, **sampling}
        rids = [self.submit(prompt, max_new_tokens, **options) for prompt in prompts]
        self._drain("engine.generate()", max_iterations)
        return [self.results[rid] for rid in rids]

    def submit(
        self,
        prompt: Any,
        max_new_tokens: int = 8,
        *,
        rid: str | None = None,
        logprobs: bool = False,
        stream: bool = True,
        **sampling: Any,
    ) -> str:
        """Send one request and return its id; the first stage takes it in its next iteration.

        `prompt`: a list of token ids, or a length for that many ids which differ from request to
        request and are the same in all runs. `stream`: whether SGLang sends each token at once, so
        that `results` has it after the step; else it sends them from time to time and at the end.
        """
        __tracebackhide__ = True
        serial = next(self._serial)
        # padded: SGLang aborts every request whose id begins with the one it is told
        rid = rid if rid is not None else f"req-{serial:03d}"
        if rid in self.results:
            raise UsageError(f"engine.submit: rid={rid!r} has been used already in this test")
        vocabulary = int(need(need(self.scheduler, "model_config"), "vocab_size"))
        made_up = isinstance(prompt, int) and not isinstance(prompt, bool)
        ids = made_up_prompt(prompt, serial, vocabulary) if made_up else token_ids(prompt)
        if not ids:
            raise UsageError("engine.submit: a prompt needs at least one token")
        params = sampling_of(max_new_tokens, sampling)
        request = generate_request(rid, ids, params, logprobs=logprobs, stream=stream)
        model = str(need(self.scheduler.server_args, "model_path"))
        self.results[rid] = Result(rid, tuple(ids), params, model)
        shown = f"submit({rid!r}, {len(ids)} tokens, hash {hash(tuple(ids)) & 0xFFFF:04x})"
        self._send(shown, request)
        return rid

    def abort(self, rid: str | None = None) -> None:
        """Send an abort for one request (None: for all); it takes effect in the next iterations.

        As in SGLang, it is for all requests whose id begins with `rid`.
        """
        if rid is not None and rid not in self.results:
            raise UsageError(f"engine.abort: {rid!r} was not submitted; known: {[*self.results]}")
        self._send(f"abort({rid!r})", abort_request(rid))

    # what moves the loops

    def step(self, n: int = 1) -> None:
        """Let every stage do `n` iterations."""
        __tracebackhide__ = True
        if n < 1:
            raise UsageError(f"engine.step: n={n!r}; at least one iteration")
        self._advance(n, "engine.step()")

    def run_until(
        self, predicate: Callable[[], object], *, max_iterations: int = 1000, where: str = "any"
    ) -> None:
        """Step until `predicate()` is true, asked on every rank before the first step, after each.

        It is enough when it is true on one rank, or with ``where="all"`` on all ranks at a time.
        Raises EngineStalled when it is not so after `max_iterations`.
        """
        __tracebackhide__ = True
        if where not in _WHERE:
            raise UsageError(f"engine.run_until: where={where!r}; allowed: 'any', 'all'")
        enough = any if where == "any" else all
        for count in range(max_iterations + 1):
            n = 1 if count else 0
            if enough(self._advance(n, "engine.run_until()", predicate)):
                return
        raise EngineStalled(
            f"the condition of run_until did not come true in {max_iterations} iterations:\n"
            + "\n".join(self._state())
        )

    def drain(self, max_iterations: int | None = None) -> None:
        """Run until every request is done and every stage idle. Raises EngineStalled.

        `max_iterations` is by default more than the requests can need.
        """
        __tracebackhide__ = True
        self._drain("engine.drain()", max_iterations)

    def leave(self) -> None:
        """End the event loops, all stages after the same iteration; the next step enters them anew.

        Everything must be idle: raises UsageError else. The teardown of the fixture does it, too.
        """
        __tracebackhide__ = True
        if self._loop is None:
            return
        if not self.idle:
            raise UsageError(
                "engine.leave: not idle; call engine.drain() before:\n" + "\n".join(self._state())
            )
        # idle, no stage needs another one to go on: those behind catch up
        self._run_to(self._granted)
        done = [view.iterations for view in self._meet("engine.leave()", self._view())]
        assert done == [self._granted] * len(done), done
        settle_sends(self.scheduler)
        self._loop.leave()
        self._loop, self._granted, self.stages = None, 0, ()

    # what is seen

    @property
    def idle(self) -> bool:
        """Whether nothing was under way on any stage after the last step, nor came since."""
        return (
            not self._calls
            and all(result.finished for result in self.results.values())
            and not any(view.busy for view in self.stages)
        )

    @property
    def iterations(self) -> int:
        """Iterations that this stage has done since its loop was entered."""
        return self._loop.completed if self._loop is not None else 0

    def is_chunking(self, rid: str) -> bool:
        """Whether some stage was in the middle of this request's prompt after the last step."""
        return any(view.chunked == rid for view in self.stages)

    def chunks_done(self, rid: str) -> int:
        """Forwards of this request's prompt that the first stage has run."""
        return len(self.results[rid].extends)

    def on_forward(self, callback: Callable[[Any], None]) -> None:
        """Have `callback(batch)` called before each forward of this stage, with its ScheduleBatch.

        It is called in the event loop's thread; what it raises ends the loop and fails the test.
        """
        self._callbacks.append(callback)

    # the fixture's

    def close(self) -> list[str]:
        """End everything; returns what the test had left under way. A meeting of all ranks.

        After a failed test nothing is tried that needs the other stages.
        """
        try:
            return self._close()
        finally:
            self._attachment.detach()

    def _close(self) -> list[str]:
        parked = self._loop is None or self._loop.parked
        try:
            reports = self._meet("the engine's teardown", (parked, self._pprank.failed))
        except PeerError:
            reports = [(False, True)]
        if not all(sound and not failed for sound, failed in reports):
            if self._loop is not None and self._loop.parked:
                self._loop.leave()
            if not any(failed for _, failed in reports):
                self._pprank.spoil("an event loop of SGLang's has ended by itself")
            return []
        left = [] if self.idle else [rid for rid, r in self.results.items() if not r.finished]
        if left:
            self.abort()
        if not self.idle:
            self._drain("the engine's teardown", None)
        self.leave()
        return left

    # inside

    def _send(self, call: str, message: Any) -> None:
        self._calls.append(call)
        if self._attachment.wire is not None:
            self._attachment.wire.send(message)

    def _drain(self, operation: str, limit: int | None) -> None:
        __tracebackhide__ = True
        slots = self._pprank.num_stages
        limit = limit if limit is not None else self._enough()
        window, done, quiet, before = 4 * slots, 0, 0, -1
        while not (self.idle and self.stages):
            self._advance(min(window, max(1, limit - done)), operation)
            done += window
            progress = sum(view.progress for view in self.stages)
            quiet = quiet + window if progress == before else 0
            before = progress
            if not self.idle and (quiet >= _STALLED * slots or done >= limit):
                words = f"nothing has moved for {quiet}" if quiet else f"not done after {done}"
                raise EngineStalled(f"{words} iterations:\n" + "\n".join(self._state()))

    def _enough(self) -> int:
        tokens = sum(
            len(result.prompt) + int(result.sampling.get("max_new_tokens") or 0)
            for result in self.results.values()
            if not result.finished
        )
        return (200 + 2 * tokens) * self._pprank.num_stages

    def _advance(
        self, n: int, operation: str, predicate: Callable[[], object] | None = None
    ) -> list[bool]:
        __tracebackhide__ = True
        if self._loop is None:
            self._loop = LoopThread(lambda: enter_loop(self.scheduler))
            self._loop.start()
        self._granted += n
        self._run_to(max(0, self._granted - self._pprank.stage))
        report = _Report(tuple(self._calls), self._view())
        if self._attachment.wire is not None:
            messages = self._attachment.wire.receive()
            report.outputs = [output for message in messages for output in outputs_of(message)]
            report.forwards = self.forwards[self._told :]
            self._told = len(self.forwards)
        self._take_in(self._meet(operation, report))
        return [bool(flag) for flag in self._meet(operation, predicate())] if predicate else []

    def _run_to(self, iterations: int) -> None:
        __tracebackhide__ = True
        assert self._loop is not None
        try:
            self._loop.run_to(iterations)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            lines = [f"SGLang's event loop failed: {type(error).__name__}: {error}", *self._last()]
            raise EventLoopFailed("\n".join(lines)) from error

    def _last(self) -> Iterator[str]:
        """Yield what this stage was at; nothing in it differs from stage to stage by itself."""
        if self.forwards:
            last = self.forwards[-1]
            extends = ", ".join(f"{start}-{end}" for start, end in last.extends)
            yield f"  last forward: {last.mode} of {', '.join(last.rids)}" + (
                f" (tokens {extends})" if extends else ""
            )
        yield from (f"  {line}" for line in holders(self.scheduler))

    def _take_in(self, reports: list[_Report]) -> None:
        __tracebackhide__ = True
        calls = {report.calls for report in reports}
        if len(calls) > 1:
            lines = [
                f"  rank {rank}: {', '.join(report.calls) or 'nothing'}"
                for rank, report in enumerate(reports)
            ]
            raise UsageError(
                "\n".join(["the ranks asked the engine for different things:", *lines])
            )
        self._calls.clear()
        self.stages = tuple(report.view for report in reports)
        for output in reports[0].outputs:
            self._record(output)
        for forward in reports[0].forwards:
            for rid, extend in zip(forward.rids, forward.extends, strict=False):
                if rid in self.results:
                    self.results[rid].extends.append(extend)

    def _record(self, output: Output) -> None:
        result = self.results.get(output.rid)
        if result is None:
            return  # SGLang's own, such as a health check
        result.token_ids += output.token_ids
        result.logprobs += output.logprobs
        result.finish_reason = output.finish_reason or result.finish_reason
        result.cached_tokens = output.cached_tokens or result.cached_tokens

    def _view(self) -> StageView:
        return view_stage(self.scheduler, self._pprank.stage, self.iterations, len(self.forwards))

    def _state(self) -> Iterator[str]:
        for rid, result in self.results.items():
            if not result.finished:
                yield (
                    f"  {rid}: prompt of {len(result.prompt)} tokens (forwards of it: "
                    f"{result.extends or 'none'}), {len(result.token_ids)} tokens came out"
                )
        for view in self.stages:
            held = "; ".join(view.busy) or "idle"
            yield f"  stage {view.stage}, {view.iterations} iterations: {held}"

    def _meet(self, operation: str, obj: Any) -> list[Any]:
        __tracebackhide__ = True
        return self._pprank.meet(operation, obj, _users_line())

    def _at_top(self) -> None:
        if self._loop is not None:
            self._loop.at_top()

    def _at_forward(self, batch: Any) -> None:
        forward = forward_of(batch, self.iterations)
        self.forwards.append(forward)
        note_forward(self.scheduler, batch.reqs, forward.mode)
        for callback in self._callbacks:
            callback(batch)


def _users_line() -> str:
    """Return file and line of the test that called the engine."""
    here = str(Path(__file__).parent)
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
