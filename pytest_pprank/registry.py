"""The tables of checks, which watch tests, and faults, which disturb them: names and locations.

The controller knows each by its row, and imports nothing for it. A rank imports the row's `place`.
Rows of other plugins are registered by hooks (see registration).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_pprank import names
from pytest_pprank.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_pprank.protocol.findings import Finding


@dataclass(frozen=True)
class Row:
    """What both kinds have: see CheckRow and FaultRow.

    `name`: as in options and markers. `about`: one sentence. `place`: the class, as
    ``"module:Class"`` (imported on ranks only) or the class itself. `sglang`: whether it needs
    SGLang; if so, it is not used in tests without SGLang. `devices`: the devices it works on
    (``"cpu"``, ``"sim"``, ``"cuda"``), empty for all. `asked_on`: those of them on which it is only
    for runs and tests that name it. `hooks`: the hook points (``observe.seams``)
    that it listens to; with an SGLang that lacks one it is off, and the report says so. `compare`:
    the function that the controller calls, as ``"module:function"`` or the function itself. It is
    called after a test that has not failed otherwise, with the evidence by rank (None from a rank
    without), and yields a `Finding` for each inconsistency. `opt_in`: only for tests that name it.
    """

    name: str
    about: str
    place: str | type
    sglang: bool = True
    devices: Sequence[str] = ()
    asked_on: Sequence[str] = ()
    hooks: Sequence[str] = ()
    compare: str | Callable[..., Iterable[Finding]] = ""
    opt_in: bool = False

    what: ClassVar[str] = ""
    base: ClassVar[str] = ""
    """The class that `place` must be a subclass of, as ``"module:Class"``."""

    def load(self) -> type:
        """Return the class. Raises what importing it raises."""
        return _resolved(self.place) if isinstance(self.place, str) else self.place

    def load_compare(self) -> Callable[..., Iterable[Finding]] | None:
        """Return the function that the controller calls; None if the row has none."""
        compare = self.compare or None
        return _resolved(compare) if isinstance(compare, str) else compare

    def works_on(self, device: str, *, sglang: bool) -> bool:
        """Return whether it works on this device, in tests with SGLang (`sglang`) or without."""
        return (sglang or not self.sglang) and (not self.devices or device in self.devices)


class CheckRow(Row):
    """A check (sanitizer) as the controller knows it; its class is a `Sanitizer`."""

    what = "sanitizer"
    base = "pytest_pprank.checks.base:Sanitizer"


class FaultRow(Row):
    """A fault that ``--pprank-perturb`` draws from its seed; its class is a `Perturbation`.

    `opt_in`: only for tests whose marker names it, because other tests would rightly fail.
    """

    what = "perturbation"
    base = "pytest_pprank.faults.base:Perturbation"


class Registry:
    """The rows of one kind: ours, and the ones other plugins have registered for this run."""

    def __init__(self, kind: type[Row], builtin: tuple[Row, ...]) -> None:
        self.kind = kind
        self.others: tuple[Row, ...] = ()
        self.strict = True
        """Whether an unknown name is an error; False on ranks: the controller has checked already.
        """
        self._builtin = builtin

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, ours first. Lists of names keep this order, whatever order was given."""
        return (*self._builtin, *self.others)

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(row.name for row in self.rows)

    @property
    def default(self) -> tuple[str, ...]:
        """The names of the rows that are not opt-in."""
        return tuple(row.name for row in self.rows if not row.opt_in)

    def find(self, name: str) -> Row | None:
        """Return a row by its name; None if it is not registered here."""
        return next((row for row in self.rows if row.name == name), None)

    def row_of(self, name: str) -> Row:
        """Return a row by its name. Raises UsageError if it is not registered in this process."""
        row = self.find(name)
        if row is None:
            near = did_you_mean(name, self.names)
            raise UsageError(
                f"there is no {self.kind.what} {name!r} in this process{near}: one of your own is "
                "to be registered on the ranks, too, by an installed plugin, by -p, or by a "
                "conftest.py"
            )
        return row

    def parse(
        self, value: object, where: str, default: Sequence[str], everything: Sequence[str]
    ) -> tuple[str, ...]:
        """Read a list of names (see names.parse_names). Raises UsageError."""
        known = self.names if self.strict else tuple(dict.fromkeys([*self.names, *_given(value)]))
        return names.parse_names(
            value, where, self.kind.what, known, default=default, everything=everything
        )

    def chosen_for(self, chosen: Iterable[str], device: str, *, sglang: bool) -> tuple[str, ...]:
        """Return the names in `chosen` whose rows work there (see `Row.works_on`)."""
        rows = map(self.row_of, chosen)
        return tuple(row.name for row in rows if row.works_on(device, sglang=sglang))


def _resolved(place: str) -> Any:
    from pkgutil import resolve_name  # only where ranked tests run

    return resolve_name(place)


def _given(value: object) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)):
        return []
    bare = [str(word).strip().lstrip("+-") for word in words]
    return [word for word in bare if word not in ("", names.ALL, names.NONE)]
