"""SGLang's base class of unittest-style tests, on ranks."""

from __future__ import annotations

import sys

_MODULE = "sglang.test.test_utils"
_RETRIES = "_callTestMethod"


def run_each_method_once() -> None:
    """Take out of SGLang's CustomTestCase that it runs a test method again after a failure.

    In SGLang's CI it does, and on one rank alone: the peers are past the method by then. Without
    CI, too, it replaces the exception of the test by one of its own. Does nothing if no test file
    has imported the class.
    """
    case = getattr(sys.modules.get(_MODULE), "CustomTestCase", None)
    if case is not None and _RETRIES in vars(case):
        delattr(case, _RETRIES)
