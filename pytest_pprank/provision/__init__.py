"""Give the current interpreter's environment a real SGLang: ``python -m pytest_pprank setup``.

`facts` looks at the machine, `plan` decides (pure), `pip` installs, `verify` proves the result
in a fresh process, `command` is the order of these and the command line.
"""
