"""The module's own docstring is not a pair.

It has a summary and a long body, but it belongs to no function and no class, and so nobody would
look for it by what it does, however many words it has.
"""

raise RuntimeError("a source of docstrings is never imported")
