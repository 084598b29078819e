"""The reverts that are known by name: one module and one table entry each."""

from __future__ import annotations

from pytest_pprank.sglang.reverts.model import Revert

from . import pr26883, pr27374, pr29405, pr31869, pr37669

NAMED: dict[str, Revert] = {
    module.REVERT.id: module.REVERT for module in (pr26883, pr27374, pr29405, pr31869, pr37669)
}
