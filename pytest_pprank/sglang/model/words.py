"""A tokenizer for the tiny models, which have no text: the text of token N is its number.

SGLang's Scheduler needs one for stop strings and for ``min_new_tokens``; the plugin starts it
without (``skip_tokenizer_init``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler


def give_tokenizer(scheduler: Scheduler) -> None:
    """Give this stage's Scheduler a tokenizer, until the test ends; call it on every stage.

    The text of tokens is their numbers with blanks between them: ``[17, 4]`` is ``"17 4"``. The
    end-of-text token is the model's.
    """
    need(scheduler, "tokenizer")
    config = need(scheduler, "model_config")
    ends = sorted(need(config, "hf_eos_token_id") or ())
    scheduler.tokenizer = _tokenizer(int(config.vocab_size), ends[0])


def words_of(tokens: Sequence[int]) -> str:
    """Return the text of output tokens."""
    return " ".join(map(str, tokens))


def _tokenizer(vocabulary: int, end: int) -> object:
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    words = {str(token): token for token in range(vocabulary)}
    model = tokenizers.models.WordLevel(words, unk_token="0")
    split = tokenizers.Tokenizer(model)
    split.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=split,
        eos_token=str(end),
        clean_up_tokenization_spaces=False,
    )
    made.additional_stop_token_ids = None  # an attribute of SGLang's own
    return made
