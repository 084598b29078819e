"""Known bugs of SGLang in a test run: expected failures, and runs judged by them."""
