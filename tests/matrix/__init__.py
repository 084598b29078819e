"""``tox -e matrix``: the stock suite on every locked SGLang, told in docs/support-matrix.md."""
