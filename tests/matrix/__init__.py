"""``tox -e matrix``: runs the stock suite on every locked SGLang; writes docs/support-matrix.md."""
