"""Which models can be split how, as far as the files of the model and of SGLang say.

Imports neither torch nor sglang.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.model.families import FAMILIES, Shape
from pytest_pprank.sglang.static.release import (
    TINY_DEFAULT,
    TINY_LAYERS,
    model_config,
    package_root,
    sglang_version,
    tiny_asked,
)
from pytest_pprank.topology import Role, Sizes
from pytest_pprank.words import fitting

_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
"""The number of experts in the config of a model, by kind of model."""
_ATTENTION_TP = re.compile(r'(attn|attention)_tp_size|"attn_tp"')
"""What a model's attention asks for that is divided among the ranks of a DP rank."""


def tiny_default(sizes: Sizes) -> str:
    """Return the kind of tiny model for these sizes: one that SGLang can split so."""
    shares = [role.shares for role in sizes.roles]
    if any(share.ep > 1 for share in shares):
        return "qwen3-moe"
    return "qwen3" if any(share.dp > 1 for share in shares) else TINY_DEFAULT


def check_model(args: Mapping[str, object], role: Role, sizes: Sizes) -> None:
    """Raise UsageError unless the ranks of a stage of `role` can split the model.

    `args`: the user's server args of the role; without a ``model_path`` it is the tiny model. A
    model_path that is not a local folder cannot be read here: what it has is not checked.
    """
    given = args.get("model_path")
    tiny = tiny_asked(given)
    if given is None or tiny is not None:
        family = FAMILIES[tiny.family if tiny is not None else tiny_default(sizes)]
        config: Mapping[str, object] = family.config(Shape(TINY_LAYERS))
        heads, experts = Shape(TINY_LAYERS).heads, family.experts
    else:
        config = model_config(Path(str(given)))
        heads, experts = _number(config, "num_attention_heads"), _experts_of(config)
    _check_heads(role, heads)
    _check_experts(role, experts, known=bool(config))
    _check_attention(role, config)


def _check_heads(role: Role, heads: int) -> None:
    tp = role.attention_tp
    if heads % tp:
        # DP ranks have all heads each
        of_dp = f" of a DP rank (dp={role.shares.dp})" if role.shares.dp > 1 else ""
        raise UsageError(
            f"--tp-size {role.tp} or @pytest.mark.pprank(tp={role.tp}): the model has {heads} "
            f"attention heads, which {tp} ranks{of_dp} cannot share; allowed: {fitting(heads)}"
        )


def _check_experts(role: Role, experts: int, *, known: bool) -> None:
    ep = role.shares.ep
    given = f"--ep-size {ep} or @pytest.mark.pprank(ep={ep}): the model has "
    if ep > 1 and known and not experts:
        raise UsageError(
            f"{given}no experts; allowed: 1, or a model with experts, such as "
            '@pytest.mark.sglang(model_path="tiny:qwen3-moe")'
        )
    if experts % ep:
        raise UsageError(
            f"{given}{experts} experts, which {ep} EP ranks cannot share; allowed: "
            f"{fitting(experts)}"
        )


def _check_attention(role: Role, config: Mapping[str, object]) -> None:
    dp, named = role.shares.dp, config.get("architectures")
    for architecture in named if dp > 1 and isinstance(named, list) else ():
        file = _model_file(str(architecture))
        if file is not None and not any(map(_splits_attention, _with_models_it_uses(file))):
            raise UsageError(
                f"--dp-size {dp} or @pytest.mark.pprank(dp={dp}): {architecture} of SGLang "
                f"{sglang_version()} has no path for DP attention ({file.name} divides its heads "
                "among all ranks of a stage, so that ranks with other requests would wait for each "
                "other); allowed: 1, or another model, such as "
                '@pytest.mark.sglang(model_path="tiny:qwen3")'
            )


@lru_cache
def _model_file(architecture: str) -> Path | None:
    """Return the file of SGLang that declares the model class of that name."""
    root = package_root()
    declared = re.compile(rf"^class {re.escape(architecture)}\(", re.MULTILINE)
    for file in sorted((root / "srt" / "models").glob("*.py")) if root is not None else ():
        if declared.search(file.read_text(encoding="utf-8")):
            return file
    return None


def _with_models_it_uses(file: Path) -> Iterator[Path]:
    yield file
    for name in re.findall(r"from sglang\.srt\.models\.(\w+) import", file.read_text("utf-8")):
        yield file.with_name(f"{name}.py")


@lru_cache
def _splits_attention(file: Path) -> bool:
    """Return whether a model divides its attention among the ranks of a DP rank only."""
    return file.is_file() and bool(_ATTENTION_TP.search(file.read_text(encoding="utf-8")))


def _experts_of(config: Mapping[str, object]) -> int:
    return max(_number(config, name) for name in _EXPERTS)


def _number(config: Mapping[str, object], name: str) -> int:
    found = config.get(name)
    return found if isinstance(found, int) else 0
