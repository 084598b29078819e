"""What the controller says about SGLang without importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pytest_pprank.errors import SeamMissing, UsageError
from pytest_pprank.sglang.static import parallel, release
from pytest_pprank.sglang.static.arg_values import misfit
from pytest_pprank.sglang.static.arguments import default_server_args, merge
from pytest_pprank.sglang.static.installed import Installed
from pytest_pprank.topology import Shares, Sizes


def test_default_args_are_args_of_the_installed_sglang() -> None:
    for device in ("cpu", "cuda:1"):
        args = default_server_args(num_stages=2, device=device, model_path="m")
        assert set(args) <= set(release.server_arg_names())


def test_default_args_refuse_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        default_server_args(num_stages=2, device="tpu", model_path="m")


def test_later_args_win() -> None:
    assert merge({"a": 1, "b": 1}, {"a": 2}, {"a": 3}) == {"a": 3, "b": 1}


def test_known_args_pass() -> None:
    release.check_server_args({"enable_dynamic_chunking": True, "model_path": "x"})


def test_unknown_arg_names_marker_version_and_neighbour() -> None:
    with pytest.raises(UsageError) as error:
        release.check_server_args({"enable_dynamic_chunkin": True})
    assert "@pytest.mark.sglang(enable_dynamic_chunkin=...)" in str(error.value)
    assert f"SGLang {release.sglang_version()} has no server arg" in str(error.value)
    assert "did you mean 'enable_dynamic_chunking'?" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("chunked_prefill_size", "lots", "an int or None"),
        ("disable_radix_cache", 1, "a bool"),
        ("disaggregation_mode", "x", "prefill"),
    ],
)
def test_value_of_another_type(name: str, value: object, allowed: str) -> None:
    if name == "disaggregation_mode":
        assert allowed in misfit(release.server_arg_names()[name], value)
        return
    with pytest.raises(UsageError, match=rf"sglang\({name}={value!r}\): SGLang .* takes {allowed}"):
        release.check_server_args({name: value})


def test_our_own_defaults_are_of_the_declared_types() -> None:
    known = release.server_arg_names()
    for device in ("cpu", "sim:0", "cuda:0"):
        args = default_server_args(num_stages=2, device=device, model_path="m")
        assert not [name for name, value in args.items() if misfit(known[name], value)]


@pytest.mark.parametrize(
    ("name", "instead"),
    [("pp_size", "--pp-size"), ("device", "--pprank-device"), ("dist_init_addr", "loopback")],
)
def test_args_of_the_harness_say_what_to_use(name: str, instead: str) -> None:
    with pytest.raises(UsageError, match=instead):
        release.check_server_args({name: 1})


def test_private_names_are_no_args() -> None:
    assert not [name for name in release.server_arg_names() if name.startswith("_")]


@pytest.mark.parametrize("layout", ["fields", "dataclass"])
def test_args_are_found_in_both_layouts(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = tmp_path / "srt" / "arg_groups" / "fields"
    fields.mkdir(parents=True)
    body = "class {}:\n    page_size: int = 1\n"
    one, other = (fields / "a.py", tmp_path / "srt/server_args.py")
    one.write_text(body.format("Schedule") if layout == "fields" else "")
    other.write_text(
        body.format("ServerArgs") if layout == "dataclass" else "class ServerArgs: 0\n"
    )
    monkeypatch.setattr(release, "package_root", lambda: tmp_path)
    assert set(release.server_arg_names.__wrapped__()) == {"page_size"}


def test_no_args_at_all_is_a_missing_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "package_root", lambda: tmp_path)
    with pytest.raises(SeamMissing, match="no server arg found"):
        release.server_arg_names.__wrapped__()


@pytest.mark.parametrize("args", [{}, {"model_path": "tiny:qwen3"}])
def test_tiny_models_have_a_layer_for_each_stage(args: dict[str, str]) -> None:
    assert release.num_layers(args, stages=2) == 4
    assert release.num_layers(args, stages=9) == 9


def test_unknown_tiny_model() -> None:
    with pytest.raises(UsageError) as error:
        release.num_layers({"model_path": "tiny:quen3"}, stages=2)
    assert "model_path='tiny:quen3'): there is no such tiny model" in str(error.value)
    assert "(did you mean 'qwen3'?); allowed: tiny:llama, " in str(error.value)


def test_tiny_models_with_a_number_of_layers() -> None:
    assert release.tiny_asked("tiny:qwen3:5") == ("qwen3", 5)
    assert release.num_layers({"model_path": "tiny:llama:5"}, stages=3) == 5
    with pytest.raises(UsageError, match="'tiny:llama:5' has 5 layers, so at most 5 stages"):
        release.num_layers({"model_path": "tiny:llama:5"}, stages=6)


@pytest.mark.parametrize("layers", ["", "0", "-1", "x", "129", "4:4"])
def test_a_number_of_layers_that_is_none(layers: str) -> None:
    with pytest.raises(UsageError) as error:
        release.num_layers({"model_path": f"tiny:llama:{layers}"}, stages=2)
    assert str(error.value) == (
        f"@pytest.mark.sglang(model_path='tiny:llama:{layers}'): "
        "the number of layers must be 1 to 128"
    )


def test_layers_of_a_model_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    assert release.num_layers({"model_path": str(tmp_path)}, stages=3) == 3
    with pytest.raises(UsageError, match="has 3 layers, so at most 3 stages") as error:
        release.num_layers({"model_path": str(tmp_path)}, stages=4)
    assert str(error.value).startswith("--pp-size 4 or @pytest.mark.pprank(pp=4): ")


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": "2.13.0"}, "sglang is not installed"),
        ({"sglang": "0.5.12", "torch": "2.13.0"}, "sglang 0.5.12 is too old.* 0.5.13 or newer"),
        ({"sglang": "0.5.21", "torch": "2.10.1+cu128"}, "torch 2.10.1.* is too old"),
        ({"sglang": "0.5.21"}, "torch is not installed"),
    ],
)
def test_missing_or_old_packages(
    versions: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    here = versions.get("sglang")
    found = None if here is None else Installed(here, Path("/sglang"))
    monkeypatch.setattr(release, "installed", lambda: found)
    with pytest.raises(UsageError, match=message) as error:
        release.check_installed()
    assert "python -m pytest_pprank setup" in str(error.value)


def test_controller_side_imports_neither_torch_nor_sglang() -> None:
    modules = (
        "static.release",
        "model.families",
        "static.arguments",
        "static.torchvision_shim",
        "platform",
        "static.load_snapshot",
    )
    code = "import sys\n" + "".join(f"import pytest_pprank.sglang.{name}\n" for name in modules)
    code += "import pytest_pprank.assertions\nprint(sorted({'torch', 'sglang'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fits(args: dict[str, object], tp: int, dp: int = 1, ep: int = 1) -> None:
    sizes = Sizes(1, tp=tp, shares=Shares(dp, ep))
    parallel.check_model(args, sizes.roles[0], sizes)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_heads_that_ranks_can_share(tp_size: int) -> None:
    fits({}, tp_size)


@pytest.mark.parametrize("tp_size", [3, 8])
def test_heads_that_ranks_cannot_share(tmp_path: Path, tp_size: int) -> None:
    with pytest.raises(UsageError, match=rf"--tp-size {tp_size} .* 4 attention heads.*: 1, 2, 4"):
        fits({"model_path": "tiny:qwen3"}, tp_size)
    (tmp_path / "config.json").write_text('{"text_config": {"num_attention_heads": 12}}')
    with pytest.raises(UsageError, match=r"12 attention heads.*: 1, 2, 3, 4, 6, 12"):
        fits({"model_path": str(tmp_path)}, 5)
    # each DP rank has all heads
    fits({}, 8, dp=2)
    with pytest.raises(UsageError, match=r"4 attention heads, which 8 ranks of a DP rank .dp=2."):
        fits({}, 16, dp=2)


def test_experts_that_ranks_cannot_share(tmp_path: Path) -> None:
    fits({}, 4, ep=4)
    fits({"model_path": "tiny:deepseek-v3"}, 2, ep=2)
    fits({"model_path": "some/model"}, 2, ep=2)  # SGLang itself has to say
    with pytest.raises(UsageError, match=r"--ep-size 2 .* no experts; .*tiny:qwen3-moe"):
        fits({"model_path": "tiny:llama"}, 2, ep=2)
    (tmp_path / "config.json").write_text('{"num_local_experts": 6, "num_attention_heads": 8}')
    with pytest.raises(UsageError, match=r"6 experts, which 4 EP ranks .* allowed: 1, 2, 3, 6"):
        fits({"model_path": str(tmp_path)}, 4, ep=4)


def test_models_without_a_path_for_dp_attention(tmp_path: Path) -> None:
    for known in ("tiny:qwen3", "tiny:qwen3-moe", "tiny:deepseek-v3", "some/model"):
        fits({"model_path": known}, 2, dp=2)
    fits({}, 2, dp=2)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM .*llama.py divides its heads .*qwen3"):
        fits({"model_path": "tiny:llama"}, 2, dp=2)
    (tmp_path / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    with pytest.raises(UsageError, match=r"MistralForCausalLM .* has no path for DP attention"):
        fits({"model_path": str(tmp_path)}, 2, dp=2)
    (tmp_path / "config.json").write_text('{"architectures": ["MyOwnForCausalLM"]}')
    fits({"model_path": str(tmp_path)}, 2, dp=2)


def test_default_model_of_each_split() -> None:
    kinds = {(dp, ep): Sizes(1, tp=2, shares=Shares(dp, ep)) for dp in (1, 2) for ep in (1, 2)}
    assert [parallel.tiny_default(sizes) for sizes in kinds.values()] == [
        "llama",
        "qwen3-moe",
        "qwen3",
        "qwen3-moe",
    ]
    one_role = Sizes(1, 1, tp=1, decode_tp=2, decode_shares=Shares(dp=2))
    assert parallel.tiny_default(one_role) == "qwen3"
