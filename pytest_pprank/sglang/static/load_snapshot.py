"""The files in /dev/shm in which SGLang tells a tokenizer process about its load.

SGLang (srt/managers/load_snapshot.py, 0.5.13 to 0.5.23) names one after PortArgs.instance_id and
a digest, and removes it never. This module imports no SGLang: the controller may use it too.
"""

from __future__ import annotations

from pathlib import Path


def remove_load_snapshots(instance_prefix: str) -> None:
    """Unlink the load snapshots of every SGLang instance whose id starts with `instance_prefix`.

    With a run folder's name: those of all worker groups of that run. Ids are taken to consist of
    letters, digits and ``-_``, which SGLang leaves as they are.
    """
    if not instance_prefix:
        raise ValueError("an empty prefix would unlink the files of other people's servers")
    for file in Path("/dev/shm").glob(f"sglang_loads_{instance_prefix}*.shm"):
        file.unlink(missing_ok=True)
