"""Cleans up the files in /dev/shm through which SGLang reports its load to a tokenizer process.

SGLang (srt/managers/load_snapshot.py, 0.5.13 to 0.5.23) names each file after PortArgs.instance_id
and a digest, and never removes it. Imports no SGLang: the controller may use this module, too.
"""

from __future__ import annotations

from pathlib import Path


def remove_load_snapshots(instance_prefix: str) -> None:
    """Unlink the load snapshots of every SGLang instance whose id starts with `instance_prefix`.

    A run folder's name as prefix selects the instances of all worker groups of that run. Ids must
    consist of letters, digits and ``-_``, which SGLang keeps unchanged in file names.
    """
    if not instance_prefix:
        raise ValueError("an empty prefix would unlink the files of other people's servers")
    for file in Path("/dev/shm").glob(f"sglang_loads_{instance_prefix}*.shm"):
        file.unlink(missing_ok=True)
