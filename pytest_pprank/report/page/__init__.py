"""The page of a run (``--pprank-report``), and its trace for Perfetto.

Each test is written as a *part*, a file in the page's folder, when it ends; `build` makes the page
of all parts at the end of the run. So parts of several processes (of pytest-xdist) need no merging.

`timeline` turns the traces and ledgers of a test into a timeline, `waits` a hang into a graph;
`parts` has the form of a part, `folder` looks after the folder, `perfetto` writes the trace.
"""
