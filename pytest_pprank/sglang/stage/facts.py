"""Facts about one stage of a Scheduler, on which the stages must, or must not, agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.model import layers_of
from pytest_pprank.sglang.compat.profiler import predict_chunk
from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler


@dataclass(frozen=True)
class StageFacts:
    """Facts about one stage. `layers`: its layers, numbered through the whole model.

    `mixins`: names of the Scheduler's base classes. `chunk_sizes`: predictions after 0, 512 and
    1024 tokens, None without dynamic chunking.
    """

    stage: int
    num_stages: int
    mixins: tuple[str, ...]
    layers: range
    layers_of_model: int
    max_total_num_tokens: int
    max_running_requests: int
    max_prefill_tokens: int
    max_req_input_len: int
    chunked_prefill_size: int | None
    page_size: int
    random_seed: int
    chunk_sizes: tuple[int | None, ...]

    @property
    def shared(self) -> dict[str, object]:
        """The facts that must be the same on every stage."""
        own = ("stage", "layers")
        return {name: value for name, value in vars(self).items() if name not in own}


def stage_facts(scheduler: Scheduler) -> StageFacts:
    """Read the facts of this rank's stage; raises SeamMissing for one that SGLang lacks."""
    group = need(scheduler, "pp_group")
    runner = need(need(scheduler, "tp_worker"), "model_runner")
    return StageFacts(
        stage=int(need(group, "rank_in_group")),
        num_stages=int(need(group, "world_size")),
        mixins=tuple(cls.__name__ for cls in type(scheduler).__mro__[1:-1]),
        layers=layers_of(runner),
        layers_of_model=int(need(runner.model_config, "num_hidden_layers")),
        max_total_num_tokens=int(need(scheduler, "max_total_num_tokens")),
        max_running_requests=int(need(scheduler, "max_running_requests")),
        max_prefill_tokens=int(need(scheduler, "max_prefill_tokens")),
        max_req_input_len=int(need(scheduler, "max_req_input_len")),
        chunked_prefill_size=need(scheduler, "chunked_prefill_size"),
        page_size=int(need(scheduler, "page_size")),
        random_seed=int(need(scheduler, "random_seed")),
        chunk_sizes=tuple(predict_chunk(scheduler, history) for history in (0, 512, 1024)),
    )
