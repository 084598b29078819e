"""The stock suite: tests an installed or checked-out SGLang on real ranks.

    pytest --pyargs pytest_pprank.suite --pp-size 2

The controller collects these files, so their top level imports neither torch nor SGLang.
"""
