"""Derives the pytest configuration of a rank from the controller's."""

from __future__ import annotations

import os
import pickle
from types import ModuleType

import pytest

from pytest_pprank.controller import coverage

# Options that select tests, concern the terminal, or name files that only one process may write.
# Most plugins need no entry: to them a rank is a worker (controller.nodes).
_NEUTRAL: dict[str, object] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "cacheclear": False,
    "cacheshow": None,
    "collectonly": False,
    "maxfail": 0,
    "usepdb": False,
    "trace": False,
    "setupshow": False,
    "setuponly": False,
    "setupplan": False,
    "pyargs": False,
    "xmlpath": None,
    "pastebin": None,
    "durations": None,
    "continue_on_collection_errors": True,
    "color": "no",
    # what a rank prints goes to the controller (see host.output), not into its own pytest
    "capture": "no",
    "log_file": os.devnull,
    # pytest-cov; host.neighbours.pytest_cov starts it
    "cov_source": [],
    # xdist
    "dist": "no",
    "numprocesses": None,
    "tx": [],
    "looponfail": False,
    # pytest-split, pytest-picked, pytest-testmon: the controller has chosen
    "splits": None,
    "group": None,
    "store_durations": False,
    "clean_durations": False,
    "picked": False,
    "testmon": False,
    # terminals: pytest-sugar, pytest-rich, pytest-instafail
    "force_sugar": False,
    "rich": False,
    "rich_capture": None,
    "instafail": False,
    # allure-pytest: the controller writes the results, and has cleaned the folder already
    "clean_alluredir": False,
    "attach_capture": False,
    # pytest-benchmark: the controller has the table; host.neighbours.pytest_benchmark
    "benchmark_autosave": False,
    "benchmark_compare": None,
    "benchmark_compare_fail": None,
    "benchmark_cprofile_dump": None,
    "benchmark_histogram": None,
    "benchmark_json": None,
    "benchmark_only": False,
    "benchmark_save": None,
    # inline-snapshot raises an error if it is to change files in a worker
    "inline_snapshot": None,
}
_BLOCKED = ("lfplugin", "nfplugin", "stepwiseplugin")
# Modules that support other plugins on a rank, with the names those may be registered under.
_NEIGHBOURS = {
    "pytest_pprank.host.neighbours.allure": ("allure_pytest", "allure_pytest.plugin"),
    "pytest_pprank.host.neighbours.pytest_benchmark": ("benchmark", "pytest_benchmark.plugin"),
    "pytest_pprank.host.neighbours.pytest_memray": ("memray", "pytest_memray"),
    "pytest_pprank.host.neighbours.pytest_regressions": (
        "regressions",
        "pytest_regressions.plugin",
    ),
    "pytest_pprank.host.neighbours.terminals": (
        "pytest_github_actions_annotate_failures",
        "pytest_github_actions_annotate_failures.plugin",
    ),
    "pytest_pprank.host.neighbours.hypothesis_examples": ("hypothesispytest",),
    "pytest_pprank.host.neighbours.pytest_cov": ("pytest_cov", "pytest_cov.plugin"),
    "pytest_pprank.host.neighbours.rerunfailures": ("rerunfailures", "pytest_rerunfailures"),
    "pytest_pprank.host.neighbours.xdist": ("xdist", "xdist.plugin"),
}


def rank_options(config: pytest.Config) -> bytes:
    """Return the parsed options a rank starts with, pickled, without unpicklable ones."""
    options = {name: value for name, value in vars(config.option).items() if _pickles(value)}
    options.update({name: value for name, value in _NEUTRAL.items() if name in options})
    options.update(coverage.rank_options(config))
    del options["file_or_dir"]  # given by rank_arguments
    options["plugins"] = []  # given by rank_arguments
    options["rootdir"] = str(config.rootpath)
    if config.inipath is not None:
        options["inifilename"] = str(config.inipath)
    # a rank is forked with its libraries imported, so pytest cannot rewrite their assertions
    ignored = "ignore::pytest.PytestAssertRewriteWarning"
    options["pythonwarnings"] = [*(options.get("pythonwarnings") or []), ignored]
    return pickle.dumps(options)


def rank_arguments(config: pytest.Config, items: list[pytest.Item]) -> tuple[str, ...]:
    """Return the command line of a rank: plugins to load or block, then files to collect."""
    blocked = [f"no:{name}" for name in _BLOCKED]
    plugins = [*config.getoption("plugins"), *blocked, *_neighbours(config)]
    flags = [word for name in _last_mentions(plugins) for word in ("-p", name)]
    files = dict.fromkeys(str(item.path) for item in items)
    return (*flags, *files)


def _last_mentions(plugins: list[str]) -> list[str]:
    """Return only the last mention of each plugin: pytest on a rank processes the list twice."""
    last: dict[str, str] = {}
    for word in plugins:
        name = word.removeprefix("no:")
        last.pop(name, None)
        last[name] = word
    return list(last.values())


def plugin_modules(config: pytest.Config) -> tuple[str, ...]:
    """Return the modules of installed plugins, which pytest imports on every rank anyway."""
    plugins = (plugin for plugin, _ in config.pluginmanager.list_plugin_distinfo())
    names = [plugin.__name__ for plugin in plugins if isinstance(plugin, ModuleType)]
    return tuple(dict.fromkeys([*names, *_neighbours(config)]))


def _neighbours(config: pytest.Config) -> list[str]:
    has = config.pluginmanager.hasplugin
    return [module for module, names in _NEIGHBOURS.items() if any(map(has, names))]


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
        return True
    except Exception:  # a value's own __reduce__ may raise anything
        return False
