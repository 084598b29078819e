"""Parses lists of names that users write: of sanitizers or perturbations."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_pprank.errors import UsageError, did_you_mean

ALL, NONE = "all", "none"


def parse_names(
    value: object,
    where: str,
    what: str,
    known: Sequence[str],
    *,
    default: Sequence[str] | None = None,
    everything: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Read ``all``, ``none``, names separated by commas, or a list of names.

    A name with a minus in front (``-logs``) is left out, and one with a plus is added; both start
    from `default` if no plain name is given. `everything`: what ``all`` stands for. `default` and
    `everything` are all of `known` if not given. Returns the names in the order of `known`. Raises
    UsageError, whose message begins with `where` and calls a name a `what`.
    """
    default = known if default is None else default
    everything = known if everything is None else everything
    words = value.split(",") if isinstance(value, str) else value
    allowed = f"give 'all', 'none' or names: {', '.join(known)}"
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{where}: {value!r}; {allowed}")
    names = [word.strip() for word in words]
    if names in ([ALL], [NONE], [], [""]):
        return tuple(everything) if names == [ALL] else ()
    left_out, added = _signed(names, "-"), _signed(names, "+")
    plain = [name for name in names if name[:1] not in ("-", "+")]
    if (left_out or added) and ALL in plain:
        plain, default = [name for name in plain if name != ALL], everything
    for name in (*left_out, *added, *plain):
        if name not in known:
            raise UsageError(
                f"{where}: there is no {what} {name!r}{did_you_mean(name, known)}; {allowed}"
            )
    kept = [name for name in plain if name not in left_out] or [*default]
    return tuple(name for name in known if name in (*kept, *added) and name not in left_out)


def _signed(names: Sequence[str], sign: str) -> list[str]:
    return [name[1:] for name in names if name.startswith(sign)]


def asked_by_name(value: object) -> frozenset[str]:
    """Return the names that such a value gives explicitly: not ``all``, ``none`` or ``-NAME``."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)):
        return frozenset()
    given = {str(word).strip().removeprefix("+") for word in words} - {ALL, NONE}
    return frozenset(word for word in given if word[:1] not in ("", "-"))
