"""The ``doctor`` command: what can run on this machine, what cannot, and what would mend it.

Each check is a function without arguments that returns a `Result`; `table` has one line for each.
torch and SGLang are imported in child processes only.
"""
