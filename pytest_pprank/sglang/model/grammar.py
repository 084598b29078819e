"""Grammars for requests made of token ids: SGLang's own backend over a made-up vocabulary.

Without a tokenizer (``skip_tokenizer_init``) SGLang builds no grammar backend. The tiny models have
no text either, so this module gives each token a text: token N below 256 is that byte, any other
token is "N " (the number and a blank).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pytest_pprank.devices.sim import in_use
from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler

_BYTES = 256


class _MadeUpTokenizer:
    """The interface that SGLang's xgrammar backend requires of a "special tokenizer"."""

    def __init__(self, vocabulary: int) -> None:
        self._words = [bytes([n]) if n < _BYTES else b"%d " % n for n in range(vocabulary)]

    def init_xgrammar(self) -> tuple[Any, None]:
        """Return the tokenizer's vocabulary, and None: it has no stop tokens of its own."""
        xgrammar = import_module("xgrammar")
        info = xgrammar.TokenizerInfo(self._words, vocab_type=xgrammar.VocabType.RAW)
        return info, None


def start_grammars(scheduler: Scheduler, backend: object) -> None:
    """Create the grammar backend that the server args ask for; only xgrammar is supported.

    Raises UsageError for another backend, and where xgrammar is not installed.
    """
    manager = need(scheduler, "grammar_manager")
    if backend in (None, "none") or manager.grammar_backend is not None:
        return
    if backend != "xgrammar":
        raise UsageError(
            f"@pytest.mark.sglang(grammar_backend={backend!r}): the tiny vocabulary is known to "
            "'xgrammar' only; allowed: 'xgrammar', 'none'"
        )
    if find_spec("xgrammar") is None:
        raise UsageError(
            "@pytest.mark.sglang(grammar_backend='xgrammar'): xgrammar is not installed; run: "
            "pip install xgrammar (python -m pytest_pprank setup does so)"
        )
    create = need(import_module("sglang.srt.constrained.grammar_manager"), "create_grammar_backend")
    config = need(scheduler, "model_config")
    tokenizer = _MadeUpTokenizer(int(config.vocab_size))
    manager.grammar_backend = create(
        scheduler.server_args, tokenizer, config.vocab_size, config.hf_eos_token_id
    )
    if in_use():
        from pytest_pprank.sglang.platform.sim_kernels import register_grammar

        register_grammar()
