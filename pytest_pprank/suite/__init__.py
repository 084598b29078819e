"""The stock suite: checks an installed or checked-out SGLang on real ranks.

    pytest --pyargs pytest_pprank.suite --pp-size 2

The controller collects these files, so they import neither torch nor SGLang at their top.
"""
