"""Registers the sanitizer of `own_sanitizer`, in pytest's own process and on each rank."""

from __future__ import annotations

from pytest_pprank import CheckRow


def pytest_pprank_register_checks() -> list[CheckRow]:
    return [
        CheckRow(
            "token_budget",
            "forwards of more than 64 tokens",
            "own_sanitizer.token_budget:TokenBudget",
            hooks=["init_new"],
            opt_in=True,  # the other examples have prompts of any length
        )
    ]
