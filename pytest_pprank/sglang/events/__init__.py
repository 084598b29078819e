"""What SGLang does on this rank, as typed events.

`types` defines the events and imports neither torch nor SGLang. `hooks` lists their sources.
"""
