"""All code that knows SGLang: one module per part of SGLang, adapted to the installed release.

Modules in `static` import neither torch nor sglang, so the controller may import them. All other
modules are imported on ranks only.
"""

PLUMBING = ("sglang/srt/distributed/", "sglang/srt/utils/")
"""Folders of SGLang whose code lies between the caller of an operation and torch.distributed."""
