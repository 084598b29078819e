"""Mutation testing of SGLang: how many breakages of its code does a suite of tests detect?

`source` reads functions from the installed source, `operators` find the places in them that can be
broken, `equivalent` has the rules for changes without an effect, `points` makes mutants of what is
left. A mutant is a revert of one edit (`as_revert`), so it is applied in the memory of the ranks
and judged as ``regressions`` judges. `sites` determines which tests come to which mutant; `command`
is ``python -m pytest_pprank mutate``. Imports neither torch nor SGLang.
"""
