"""Lists of names that users write: which sanitizers, which perturbations."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_pprank.errors import UsageError, did_you_mean

ALL, NONE = "all", "none"


def parse_names(value: object, where: str, what: str, known: Sequence[str]) -> tuple[str, ...]:
    """Read ``all``, ``none``, names with commas between, or a list of names.

    A name with a minus in front (``-logs``) leaves that one out. Returns them in the order of
    `known`; raises UsageError, which begins with `where` and calls a name a `what`.
    """
    words = value.split(",") if isinstance(value, str) else value
    allowed = f"give 'all', 'none' or names: {', '.join(known)}"
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{where}: {value!r}; {allowed}")
    names = [word.strip() for word in words]
    if names in ([ALL], [NONE], [], [""]):
        return tuple(known) if names == [ALL] else ()
    left_out = [name[1:] for name in names if name.startswith("-")]
    if left_out:
        names = left_out + [name for name in names if name[0] != "-" and name != ALL]
    for name in names:
        if name not in known:
            raise UsageError(
                f"{where}: there is no {what} {name!r}{did_you_mean(name, known)}; {allowed}"
            )
    kept = [name for name in names if name not in left_out] or list(known)
    return tuple(name for name in known if name in kept and name not in left_out)


def asked_by_name(value: object) -> frozenset[str]:
    """Return the names that a value which `parse_names` takes gives: not ``all``, nor left out."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)):
        return frozenset()
    given = {str(word).strip() for word in words} - {ALL, NONE}
    return frozenset(word for word in given if word[:1] not in ("", "-"))
