"""A request to be sent: its parts, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pprank.sglang.batches.build import prompt_ids
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.driver.dp_ranks import routed
from pytest_pprank.sglang.driver.messages import (
    Asked,
    Result,
    asked_for,
    check_fields,
    generate_request,
)

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Message, Options, Prompt, Scheduler


@dataclass(frozen=True)
class Submission:
    """A request to be sent. `options`: of its message; `wanted`: the DP ranks that a test names."""

    rid: str
    ids: list[int]
    params: dict[str, object]
    options: Options
    wanted: Mapping[str, int]

    @property
    def asked(self) -> Asked:
        """What the request asks for beside tokens."""
        asked: Asked = self.options["asked"]
        return asked

    def message(self, role: str, more: Mapping[str, object] | None = None) -> Message:
        """Return the message to a role; `more`: fields that go before those of the test."""
        options = {**(more or {}), **routed(role, self.wanted), **self.options}
        return generate_request(self.rid, self.ids, self.params, **options)

    def result(self, scheduler: Scheduler, asked: Asked, dp_rank: int) -> Result:
        """Return the result, of which nothing has come yet."""
        model = str(need(scheduler.server_args, "model_path"))
        prompt = tuple(self.ids)
        return Result(self.rid, prompt, self.params, model, asked=asked, dp_rank=dp_rank)

    def __str__(self) -> str:
        """Describe it; different prompts get different texts, so ranks can compare them."""
        ids = self.ids
        return f"submit({self.rid!r}, {len(ids)} tokens, hash {hash(tuple(ids)) & 0xFFFF:04x})"


def parts_of(
    scheduler: Scheduler,
    prompt: Prompt,
    serial: int,
    call: str,
    asked: Options,
    fields: Mapping[str, object] | None,
) -> tuple[list[int], dict[str, object]]:
    """Return the token ids of a prompt, and options of `messages.generate_request`.

    `serial`: which made-up ids a length stands for. `call`: the caller's name, for errors. `asked`
    and `fields`: as in `Engine.submit`. Raises UsageError.
    """
    vocabulary = int(need(need(scheduler, "model_config"), "vocab_size"))
    ids = prompt_ids(prompt, serial, vocabulary, call)
    embedding = not need(scheduler, "is_generation")
    options: dict[str, object] = {
        "asked": asked_for({**asked, "embedding": embedding}, vocabulary),
        "tokenizer": need(scheduler, "tokenizer"),
    }
    return ids, options | dict(check_fields(fields or {}))
