"""All knowledge of SGLang, one module per seam, chosen by what the installed code has.

What is in `static` imports neither torch nor sglang, and is safe on the controller; everything
else is imported on ranks only.
"""

PLUMBING = ("sglang/srt/distributed/", "sglang/srt/utils/")
"""Folders of SGLang whose code stands between the caller of an operation and torch.distributed."""
