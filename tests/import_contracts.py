"""A contract that import-linter does not provide: no module imports itself through others.

Type-only imports are excluded from the graph (see ``[tool.importlinter]`` in pyproject.toml).
"""

from __future__ import annotations

from typing import Any

from importlinter import Contract, ContractCheck, output


class NoCycles(Contract):  # type: ignore[misc]
    """Is broken by each import whose module leads back to the importing one."""

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        """Search a way back from each import."""
        del verbose
        chains: dict[frozenset[str], tuple[str, ...]] = {}
        for importer in sorted(graph.modules):
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                back = graph.find_shortest_chain(imported, importer)
                if back is not None:
                    chains.setdefault(frozenset(back), (importer, *back))
        return ContractCheck(kept=not chains, metadata={"chains": list(chains.values())})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each cycle, once."""
        for chain in check.metadata["chains"]:
            output.print_error(" -> ".join(chain), bold=False)
