"""The book of KV tokens, compared with allocators of the forms that SGLang's releases have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_pprank.sglang.events import hooks  # noqa: F401
from pytest_pprank.sglang.events.hook_points import HookCall
from pytest_pprank.sglang.stage.kv_book import KvBook


class TokenToKVPoolAllocator:
    """What the book reads of SGLang's class of this name.

    `state`: the attribute by which it says that it collects freed tokens, to free them in one call.
    """

    page_size, size = 1, 4

    def __init__(self, **state: Any) -> None:
        self.free_pages = torch.arange(1, 5)
        self.release_pages = torch.empty(0, dtype=torch.int64)
        vars(self).update(state)


@pytest.mark.parametrize(
    ("at_once", "collecting"),
    [
        ({"free_group": None}, {"free_group": []}),
        (
            {"free_group": [], "is_not_in_free_group": True},
            {"free_group": [], "is_not_in_free_group": False},
        ),
    ],
    ids=["from 0.5.19", "up to 0.5.18"],
)
def test_tokens_are_free_once_they_are_given_back(
    at_once: dict[str, Any], collecting: dict[str, Any]
) -> None:
    found: list[str] = []
    listeners = KvBook(lambda text, _: found.append(text)).listeners()
    allocator, tokens = TokenToKVPoolAllocator(**at_once), torch.tensor([1, 2])

    def take() -> None:
        listeners["kv_alloc"](HookCall("kv_alloc", (allocator, 2), result=tokens).event)

    def give_back() -> None:
        listeners["kv_free"](HookCall("kv_free", (allocator, tokens)).event)

    take()
    give_back()
    take()
    assert not found
    vars(allocator).update(collecting)
    give_back()
    take()
    assert [text.partition(":")[0] for text in found] == ["handed out twice"]
