"""What SGLang does on this rank, as typed events: `types` has them, `hooks` where they come from.

`types` imports neither torch nor SGLang.
"""
