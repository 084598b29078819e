"""A sanitizer of one's own: no forward of a test that names it is for more than 64 tokens.

Requests that decode wait while the tokens of a long prompt are computed, so a service that promises
its users a time between two tokens bounds them. That a chunk is too long fails no other test.
"""

from pytest_pprank import CheckRow, Sanitizer

MOST = 64


class TokenBudget(Sanitizer):
    """Looks at each forward for which SGLang has made a batch, on each stage."""

    def begin(self):
        self.watch.listen("init_new", self.forward_made)

    def forward_made(self, event):  # sglang.events.types.ForwardMade
        tokens = sum(end - start for start, end in event.forward.extends)
        if tokens > MOST:
            self.watch.report(
                f"a forward of {tokens} tokens, more than {MOST}: {event.forward}",
                stack=self.watch.stack(),
                cure=f"@pytest.mark.sglang(chunked_prefill_size={MOST})",
            )


def pytest_pprank_register_checks():
    """Tell pytest-pprank of it; opt_in: the other tests here have prompts of any length."""
    about = f"forwards of more than {MOST} tokens"
    return [CheckRow("token_budget", about, TokenBudget, hooks=["init_new"], opt_in=True)]
