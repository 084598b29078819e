"""--pprank-attach, on the controller: where the ranks listen, and how an editor finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

_ALL = "pprank: all ranks"


def attach_lines(names: Mapping[int, str], endpoints: Mapping[int, str]) -> Iterator[str]:
    """Yield what tells a user where to attach: an address per rank, then VS Code's launch.json."""
    for rank, address in endpoints.items():
        yield f"pprank: {names[rank]} listens on {address}"
    yield "pprank: .vscode/launch.json to attach to them:"
    yield launch_json({names[rank]: address for rank, address in endpoints.items()})


def launch_json(addresses: Mapping[str, str]) -> str:
    """Return a launch.json with one configuration per rank, and a compound that starts all."""
    configurations = [_configuration(name, address) for name, address in addresses.items()]
    names = [each["name"] for each in configurations]
    compounds = [{"name": _ALL, "configurations": names}]
    launch = {"version": "0.2.0", "configurations": configurations, "compounds": compounds}
    return json.dumps(launch, indent=2)


def _configuration(name: str, address: str) -> dict[str, object]:
    host, _, port = address.rpartition(":")
    return {
        "name": f"pprank: {name}",
        "type": "debugpy",
        "request": "attach",
        "connect": {"host": host, "port": int(port)},
        "justMyCode": False,
        "subProcess": False,
    }
