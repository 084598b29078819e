"""What ranks do over time, for the page of a run (``--pprank-report``).

`file` is the format, `record` writes on ranks, `read` reads in the controller.
"""
