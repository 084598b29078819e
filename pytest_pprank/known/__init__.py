"""Known bugs of SGLang in a test run: expected failures, and a run judged by them."""
