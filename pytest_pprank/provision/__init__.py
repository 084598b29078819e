"""Installs SGLang into the current Python environment: ``python -m pytest_pprank setup``.

`facts` inspects the machine, `plan` decides (pure functions), `pip` installs, `verify` checks the
result in a fresh process, `command` has the command line and the sequence of these steps.
"""
