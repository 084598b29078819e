"""What the command line accepts, and the message for anything else."""

from __future__ import annotations

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.options import options_of, parse_sizes


@pytest.mark.parametrize(
    ("text", "sizes"), [("2", (2,)), ("2,4", (2, 4)), (" 8 , 2 ", (8, 2)), ("3,3", (3,))]
)
def test_sizes(text: str, sizes: tuple[int] | tuple[int, ...]) -> None:
    assert parse_sizes(text, "--pp-size") == sizes


@pytest.mark.parametrize("text", ["0", "-1", "two", "2,", "2.5", ",", "1e3", "2;4"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--pp-size: .* is not a size") as e:
        parse_sizes(text, "--pp-size")
    assert repr(text) in str(e.value)
    assert "2,4" in str(e.value)  # says what is allowed


def test_defaults(pytester: pytest.Pytester) -> None:
    options = options_of(pytester.parseconfig())
    assert options.sizes == ()
    assert options.device == "auto"
    assert options.grace < options.timeout


def test_ini_and_command_line(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npp_size = 4\npprank_timeout = 7\npprank_revert = a b\n")
    options = options_of(pytester.parseconfig("--pp-size", "2"))
    assert (options.sizes, options.timeout) == ((2,), 7.0)
    assert options.reverts == ("a", "b")
    assert options_of(pytester.parseconfig()).sizes == (4,)


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--pprank-device", "tpu", "auto, cpu, sim, cuda"),
        ("--pprank-fresh", "always", "auto, test, never"),
        ("--pprank-timeout", "soon", "seconds above 0"),
        ("--pprank-timeout", "0", "seconds above 0"),
        ("--pprank-grace", "-1", "seconds above 0"),
        ("--pprank-grace", "inf", "seconds above 0"),
        ("--pprank-grace", "nan", "seconds above 0"),
    ],
)
def test_bad_values_name_option_value_and_choices(
    pytester: pytest.Pytester, flag: str, value: str, allowed: str
) -> None:
    result = pytester.runpytest_inprocess(f"{flag}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {flag}: '{value}' is not *{allowed}*"])


def test_every_hook_of_the_plugin_is_offered_to_pytest() -> None:
    import pytest_pprank
    from pytest_pprank import plugin

    hooks = {name for name in vars(plugin) if name.startswith("pytest_")}
    assert hooks - {"pytest_pprank"} <= set(vars(pytest_pprank))


def test_a_revert_given_twice_is_one(pytester: pytest.Pytester) -> None:
    """As by the command in a failure, which adds to what addopts gives."""
    pytester.makeini("[pytest]\naddopts = --pprank-revert=b\n")
    given = ("--pprank-revert=a", "--pprank-revert=b")
    assert options_of(pytester.parseconfig(*given)).reverts == ("b", "a")
