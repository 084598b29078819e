"""The `engine` fixture: requests through SGLang's real event loops, all stages in lockstep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat.messages import handled_requests
from pytest_pprank.sglang.driver.clock import Clock
from pytest_pprank.sglang.driver.control import Control, shown_control
from pytest_pprank.sglang.driver.dp_ranks import Asked as DpRank
from pytest_pprank.sglang.driver.dp_ranks import DpRanks
from pytest_pprank.sglang.driver.lockstep import LockstepDriver
from pytest_pprank.sglang.driver.messages import (
    Asked,
    Result,
    abort_request,
    sampling_of,
)
from pytest_pprank.sglang.driver.scheduler_hooks import check_engine_args
from pytest_pprank.sglang.driver.submission import Submission, parts_of
from pytest_pprank.sglang.driver.until import (
    EngineStalled,
    Patience,
    enough_for,
    run_until_over,
)
from pytest_pprank.sglang.driver.views import StageView
from pytest_pprank.sglang.events.types import Forward
from pytest_pprank.sglang.stage.stage import this_stage

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Prompt, ScheduleBatch, Scheduler

_WHERE = ("any", "all")


class Engine:
    """Drives the real event loop of every stage; all methods are calls of all ranks together.

    A request goes in through the socket on which SGLang's tokenizer manager sends requests. Its
    tokens come out of the socket on which that manager receives them, and are shared by all ranks
    through pytest's control plane. Between two calls the loops stand still, so a test can look at
    and change anything in `scheduler` on every stage.

    *Iterations.* One iteration is one turn of the loop: with pipeline parallelism one microbatch
    slot (there are `num_stages` of them, taken in turn), else one batch. Between two calls stage P
    has done P iterations less than the first stage. SGLang's own order of events requires that: in
    iteration i stage P waits for an output that stage P-1 sends in its iteration i+1.

    *Divergence.* After each step all ranks meet. A stage whose loop does not return, or a rank that
    does something else, is reported by name, as at any missed meeting. Ranks that ask for different
    requests get a UsageError. Stages that run other batches than the first stage in the same
    iteration raise StagesDiffer.

    Attributes: `scheduler`, this rank's; `clock`, the time that SGLang sees (`Clock`); `settled`,
    whether the engine has been closed in good order, so that no request may own any memory.
    """

    _name = "engine"
    _answers = "pp"
    """The role whose outputs are the results."""
    _slack_s = 0.0
    """How long nothing may make progress, in seconds: for work that runs in threads of its own."""

    def __init__(self, scheduler: Scheduler, pprank: Pprank) -> None:
        check_engine_args(scheduler)
        self.scheduler = scheduler
        self._num_stages = pprank.num_stages
        roles = pprank.sizes.roles
        self._ranks = {role.instance: len(role.ranks) for role in roles}
        self._dp_ranks = DpRanks(roles)
        self._role = pprank.instance
        self._serial = itertools.count()
        self.settled = False
        self._driver = self._make_driver(pprank)
        self._driver.controls.handled = handled_requests(scheduler)
        here = (pprank.instance, pprank.stage)
        stages = {role.instance: role.stages for role in roles}
        self.clock = Clock(self._name, stages, here, self._driver.note)

    def _make_driver(self, pprank: Pprank) -> LockstepDriver:
        return LockstepDriver(self.scheduler, pprank)

    def __repr__(self) -> str:
        under_way = [result for _, result in self._driver.unfinished()]
        rids = ", ".join(dict.fromkeys(result.rid for result in under_way)) or "nothing"
        return (
            f"<{self._name}: {self._num_stages} stages, {self.iterations} iterations done here, "
            f"under way: {rids}>"
        )

    # requests

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 8,
        *,
        priority: int | None = None,
        max_iterations: int | None = None,
        **options: Any,
    ) -> list[Result]:
        """Send all `prompts` at once, run until every request is done, and return their results.

        A prompt is a list of token ids, or a length for made-up ids. `options`: as in `submit`,
        the same for all prompts. Requests that were submitted before are finished, too. Raises
        EngineStalled.
        """
        __tracebackhide__ = True
        if isinstance(prompts, (str, int)) or not isinstance(prompts, Sequence) or not prompts:
            raise UsageError(
                f"{self._name}.generate: prompts must be a list with at least one prompt, each a "
                f"list of token ids or a length, not {prompts!r}"
            )
        options = {"stream": False, "priority": priority, **options}
        rids = [self.submit(prompt, max_new_tokens, **options) for prompt in prompts]
        self._drain(f"{self._name}.generate()", max_iterations)
        return [self.results[rid] for rid in rids]

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int = 8,
        *,
        rid: str | None = None,
        logprobs: bool = False,
        prompt_logprobs: bool = False,
        top_logprobs: int = 0,
        token_ids_logprobs: Sequence[int] = (),
        hidden_states: bool = False,
        stream: bool = True,
        priority: int | None = None,
        dp_rank: DpRank = None,
        fields: Mapping[str, object] | None = None,
        **sampling: Any,
    ) -> str:
        """Send one request and return its id; the first stage receives it in its next iteration.

        `prompt`: a list of token ids, or a length for that many made-up ids, which differ between
        requests and are the same in all runs. `stream`: whether SGLang sends each token at once, so
        that `results` has it after the step; otherwise SGLang sends tokens now and then and at the
        end. `priority`: needs ``@pytest.mark.sglang(enable_priority_scheduling=True)``. `dp_rank`:
        the DP rank that gets it; by default each in turn, as in SGLang. `sampling`: fields of
        SGLang's SamplingParams; the default is greedy, and ignores the end-of-text token.

        What else to return (see `Result`): `logprobs` of the output tokens, `top_logprobs` of that
        many of the likeliest tokens, `token_ids_logprobs` of these tokens; with `prompt_logprobs`
        all of them for the prompt, too. `hidden_states`: needs
        ``@pytest.mark.sglang(enable_return_hidden_states=True)``.

        What SGLang would refuse is not refused here: a prompt may be too long, a grammar wrong.
        `fields`: fields of SGLang's TokenizedGenerateReqInput that are sent unchanged.
        """
        __tracebackhide__ = True
        call, serial = f"{self._name}.submit", next(self._serial)
        rid = self._new_rid(rid, serial, call)
        asked = {
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
            "top_logprobs": top_logprobs,
            "token_ids_logprobs": token_ids_logprobs,
            "hidden_states": hidden_states,
        }
        ids, options = parts_of(self.scheduler, prompt, serial, call, asked, fields)
        options = {"stream": stream, "priority": priority, **options}
        wanted = self._dp_ranks.check(dp_rank, call)
        params = sampling_of(max_new_tokens, sampling)
        self._submit(Submission(rid, ids, params, options, wanted))
        return rid

    def _new_rid(self, rid: str | None, serial: int, call: str) -> str:
        # padded, because SGLang aborts every request whose id begins with the given one
        rid = rid if rid is not None else f"req-{serial:03d}"
        if any(rid in results for results in self._driver.results.values()):
            raise UsageError(f"{call}: rid={rid!r} has been used already in this test")
        return rid

    def _submit(self, request: Submission) -> None:
        role = self._answers
        dp_rank = self._dp_ranks.choose(role, request.wanted)
        self._expect(role, request, request.asked, dp_rank)
        shown = f"{request}{self._dp_ranks.words({role: dp_rank})}"
        self._driver.send(shown, request.message(role), dp_rank=dp_rank)

    def _expect(self, role: str, request: Submission, asked: Asked, dp_rank: int) -> None:
        this_stage().note_request(request.rid)
        result = request.result(self.scheduler, asked, dp_rank)
        self._driver.results[role][request.rid] = result

    def abort(self, rid: str | None = None, *, in_time: bool = True) -> None:
        """Send an abort for one request (None: for all); it takes effect in the next iterations.

        As in SGLang, it aborts all requests whose id begins with `rid`. Later steps raise AbortLost
        if a stage begins more than one forward of an aborted request, or one forward more than a
        turn of the pipeline later, or if the request ends for another reason. ``in_time=False``
        allows the rest of its prompt to be computed.
        """
        if rid is not None:
            self._known(rid, "abort")
        self._driver.send(f"abort({rid!r})", abort_request(rid))
        self._driver.note_abort(rid, (self._answers,), in_time=in_time)

    def control(self, name: str, /, *, wait: bool = False, **fields: Any) -> Control:
        """Send a control request; the first stage receives it in its next iteration.

        `name` is SGLang's: ``flush_cache``, ``get_internal_state``, ``set_internal_state``,
        ``pause_generation``, ``continue_generation``, ``slow_down``, ``update_weights_from_disk``,
        ``rpc`` (``method=``, ``parameters=``) and so on (the error for a wrong name lists all);
        `fields` are those of its message. `wait`: step until the request is done, as
        `Control.wait`. Its effects on a Scheduler outlast the test, except on plain attributes: for
        example a changed server arg, or weights.

        Raises UsageError for a name or a field that SGLang does not have. Later steps raise
        AnsweredTwice if a stage handles the request twice or more answers come than were requested,
        and StagesDiffer if it succeeds on one stage and fails on another.
        """
        __tracebackhide__ = True
        sizes = {self._answers: self._ranks[self._answers]}
        return self._control(name, sizes, fields, "", wait=wait)

    def _control(
        self, name: str, sizes: dict[str, int], fields: dict[str, object], to: str, *, wait: bool
    ) -> Control:
        """Send a control request to the roles of `sizes`; `to` names them in words."""
        __tracebackhide__ = True
        call = f"{self._name}.control"
        control, message = self._driver.controls.new(name, fields, sizes, self._run_control, call)
        here = message if self._role in sizes else None
        self._driver.send(shown_control(name, fields) + to, here, rpc=control.kind.rpc)
        if wait:
            control.wait()
        return control

    def _run_control(self, control: Control, limit: int | None) -> None:
        __tracebackhide__ = True
        try:
            self._run(f"{self._name}: {control}.wait()", limit, lambda: control.done, window=1)
        except EngineStalled:
            self._driver.controls.abandon(control)
            raise

    def _known(self, rid: str, call: str) -> None:
        known = list(dict.fromkeys(rid for held in self._driver.results.values() for rid in held))
        if rid not in known:
            raise UsageError(f"{self._name}.{call}: {rid!r} was not submitted; known: {known}")

    # stepping the loops

    def step(self, n: int = 1) -> None:
        """Run `n` iterations on every stage."""
        __tracebackhide__ = True
        if n < 1:
            raise UsageError(f"{self._name}.step: n={n!r}; at least one iteration")
        self._driver.advance(n, f"{self._name}.step()")

    def run_until(
        self, predicate: Callable[[], object], *, max_iterations: int = 1000, where: str = "any"
    ) -> None:
        """Step until `predicate()` is true; it is called on every rank, also before the first step.

        One rank on which it is true is enough; with ``where="all"`` it must be true on all ranks
        at the same time. Raises EngineStalled if that does not happen within `max_iterations`.
        """
        __tracebackhide__ = True
        if where not in _WHERE:
            raise UsageError(f"{self._name}.run_until: where={where!r}; allowed: 'any', 'all'")
        enough = any if where == "any" else all
        operation = f"{self._name}.run_until()"
        for count in range(max_iterations + 1):
            if count:
                self._driver.advance(1, operation)
            if enough(self._driver.meet(operation, bool(predicate()))):
                return
        raise EngineStalled(
            f"the condition of run_until did not come true in {max_iterations} iterations:\n"
            + self._state()
        )

    def drain(self, max_iterations: int | None = None) -> None:
        """Run until every request is done and every stage is idle. Raises EngineStalled.

        The default of `max_iterations` is more than the requests can need.
        """
        __tracebackhide__ = True
        self._drain(f"{self._name}.drain()", max_iterations)

    def leave(self) -> None:
        """End the event loops, all stages after the same iteration; the next step restarts them.

        Raises UsageError unless everything is idle. The fixture's teardown does the same.
        """
        __tracebackhide__ = True
        if not self.idle:
            raise UsageError(
                f"{self._name}.leave: not idle; call {self._name}.drain() before:\n" + self._state()
            )
        self._driver.leave(f"{self._name}.leave()")

    # state

    @property
    def results(self) -> dict[str, Result]:
        """The `Result` of each request so far, by id; the same on all ranks."""
        return self._driver.results[self._answers]

    @property
    def stages(self) -> tuple[StageView, ...]:
        """What each stage contains after the last step; the same on all ranks, empty before it."""
        return self._driver.stages

    @property
    def forwards(self) -> list[Forward]:
        """The forwards of this stage, in order."""
        return self._driver.forwards

    @property
    def idle(self) -> bool:
        """Whether no stage has work, and nothing was sent since the last step."""
        return self._driver.idle

    @property
    def iterations(self) -> int:
        """Iterations that this stage has done since its loop was started."""
        return self._driver.iterations

    def is_chunking(self, rid: str) -> bool:
        """Return whether a stage is in the middle of this request's prompt."""
        return any(view.chunked == rid for view in self.stages)

    def chunks_done(self, rid: str) -> int:
        """Return how many forwards of this request's prompt the first stage has run."""
        return len(self.results[rid].extends)

    def on_forward(self, callback: Callable[[ScheduleBatch], object]) -> None:
        """Call `callback(batch)` before each forward of this stage, with its ScheduleBatch.

        It runs in the event loop's thread. An exception from it ends the loop and fails the test.
        """
        self._driver.callbacks.append(callback)

    # for perturbations

    def at_start_of_iteration(self, callback: Callable[[], object]) -> None:
        """Call `callback()` in the event loop's thread at the start of each iteration."""
        self._driver.at_start.append(callback)

    def at_end_of_iteration(self, callback: Callable[[], object]) -> None:
        """Call `callback()` in that thread before the first iteration, and after each."""
        self._driver.at_top.append(callback)

    def before_each_step(self, callback: Callable[[], object]) -> None:
        """Call `callback()` before the loops continue; it may call `submit` and `abort`."""
        self._driver.before_step.append(callback)

    # for the fixture

    def close(self) -> list[str]:
        """Abort open requests and end the loops; return the ids of the requests aborted.

        A call of all ranks. After a failed test, do nothing that needs the other stages.
        """
        operation = f"the {self._name}'s teardown"
        try:
            self.clock.run()
            if self._driver.abort_if_failed(operation):
                return []
            left = list(dict.fromkeys(result.rid for _, result in self._driver.unfinished()))
            if left:
                self.abort()
            if not self.idle:
                self._drain(operation, None)
            self._driver.leave(operation)
            self.settled = True
            return left
        finally:
            self.clock.end()
            self._driver.detach()

    def _drain(self, operation: str, limit: int | None) -> None:
        __tracebackhide__ = True
        self._run(operation, limit, lambda: self.idle and bool(self.stages), 4 * self._num_stages)

    def _run(
        self, operation: str, limit: int | None, over: Callable[[], bool], window: int
    ) -> None:
        __tracebackhide__ = True
        limit = limit if limit is not None else enough_for(self._driver, self._num_stages)
        patience = Patience(self._num_stages, limit, self._slack_s)
        run_until_over(self._driver, operation, over, window, patience)

    def _state(self) -> str:
        return "\n".join(self._driver.state())
