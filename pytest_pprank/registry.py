"""The tables of what watches tests (checks) and of what disturbs them (faults): names and places.

The controller knows each by its row, and imports nothing for it; a rank imports its place. Rows of
other plugins come in by hooks (see registration).
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

    `name`: as options and markers have it. `about`: one sentence. `place`: the class, as
    ``"module:Class"`` (imported on ranks only) or itself. `sglang`: whether it needs SGLang, so
    that tests without it go on without. `devices`: kinds that it works on (``"cpu"``, ``"sim"``,
    ``"cuda"``), empty for all. `hooks`: the hook points (``observe.seams``) that it listens to; it
    is off, and says so, with an SGLang that lacks one. `compare`: the controller's part, as
    ``"module:function"`` or itself; it gets the evidence by rank (None from a rank without) after a
    test that has not failed otherwise, and yields a `Finding` for each that does not fit together.
    `opt_in`: only for tests that name it.
    """

    name: str
    about: str
    place: str | type
    sglang: bool = True
    devices: Sequence[str] = ()
    hooks: Sequence[str] = ()
    compare: str | Callable[..., Iterable[Finding]] = ""
    opt_in: bool = False

    what: ClassVar[str] = ""
    base: ClassVar[str] = ""
    """Where the class is that `place` must be a subclass of."""

    def load(self) -> type:
        """Return the class. Raises what its import raises."""
        return _resolved(self.place) if isinstance(self.place, str) else self.place

    def load_compare(self) -> Callable[..., Iterable[Finding]] | None:
        """Return the controller's part; None where there is none."""
        compare = self.compare or None
        return _resolved(compare) if isinstance(compare, str) else compare

    def works_on(self, device: str, *, sglang: bool) -> bool:
        """Whether it can work on this kind of device, and without SGLang or with."""
        return (sglang or not self.sglang) and (not self.devices or device in self.devices)


class CheckRow(Row):
    """A check (sanitizer) as the controller knows it; its class is a `Sanitizer`."""

    what = "sanitizer"
    base = "pytest_pprank.checks.base:Sanitizer"


class FaultRow(Row):
    """A fault that ``--pprank-perturb`` draws from its seed; its class is a `Perturbation`.

    `opt_in`: only for tests whose marker names it, because others would rightly fail.
    """

    what = "perturbation"
    base = "pytest_pprank.faults.base:Perturbation"


class Registry:
    """The rows of one kind: ours, and those that other plugins have registered for this run."""

    def __init__(self, kind: type[Row], builtin: tuple[Row, ...]) -> None:
        self.kind = kind
        self.others: tuple[Row, ...] = ()
        self.strict = True
        """Whether an unknown name is an error; on ranks the controller has looked already."""
        self._builtin = builtin

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, ours first: a run's order of names, whatever order was asked for."""
        return (*self._builtin, *self.others)

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(row.name for row in self.rows)

    @property
    def default(self) -> tuple[str, ...]:
        """The names of those that a test need not ask for."""
        return tuple(row.name for row in self.rows if not row.opt_in)

    def find(self, name: str) -> Row | None:
        """Return a row by its name; None for one that nobody has registered here."""
        return next((row for row in self.rows if row.name == name), None)

    def row_of(self, name: str) -> Row:
        """Return a row by its name. Raises UsageError where this process does not know it."""
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
        """Return those of `chosen` that can work there (see `Row.works_on`)."""
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
