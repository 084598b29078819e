"""The one place that knows how SGLang's releases differ: what the rest asks for, in its words.

A function here reads an object of SGLang's, whatever the release; `need` (in `seams`) says what a
release lacks. What an installed SGLang has decides, not its number. None of these modules imports
torch or SGLang by itself.
"""
