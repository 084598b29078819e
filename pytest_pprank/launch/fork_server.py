"""Imported only by the fork server: importing this module runs the preload.

The names to import are in an environment variable, because a fork server takes no arguments
(`multiprocessing.set_forkserver_preload` takes names of modules, and nothing else).
"""

from __future__ import annotations

import json
import os

from pytest_pprank.launch.preload import import_all
from pytest_pprank.protocol.launcher import PRELOAD_VARIABLE

entries, optional = json.loads(os.environ[PRELOAD_VARIABLE])
import_all(entries, optional, os.environ["TMPDIR"])
