"""A sanitizer of one's own: no forward is for more than 64 tokens.

Requests that decode wait while the tokens of a long prompt are computed, so a service that promises
its users a time between two tokens bounds them. A chunk that is too long fails no other test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank import Sanitizer

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.types import ForwardMade

MOST = 64


class TokenBudget(Sanitizer):
    """Looks at each forward for which SGLang has made a batch, on each stage."""

    def begin(self) -> None:
        self.watch.listen("init_new", self._forward_made)

    def _forward_made(self, event: ForwardMade) -> None:
        tokens = sum(end - start for start, end in event.forward.extends)
        if tokens > MOST:
            self.watch.report(
                f"a forward of {tokens} tokens, more than {MOST}: {event.forward}",
                stack=self.watch.stack(),
                cure=f"@pytest.mark.sglang(chunked_prefill_size={MOST})",
            )
