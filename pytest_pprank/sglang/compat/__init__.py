"""The only package that knows how SGLang's releases differ.

Each function reads an object of SGLang's, whatever the release; `need` (in `seams`) raises an error
that says what a release lacks. Functions check what the installed SGLang has, not its version
number. No module here imports torch or SGLang by itself.
"""
