"""Registers the sanitizer of `own_sanitizer`, for the controller and for each rank."""

from own_sanitizer.token_budget import pytest_pprank_register_checks  # noqa: F401
