"""YAML as data: plain values only, and never more work than the text is long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdscale.errors import KdscaleError

MAX_BYTES = 2**20
MAX_SIZE = 100_000  # values and characters, what an alias stands for counted wherever it stands
MAX_DEPTH = 50


def read_yaml(path: Path) -> Any:
    """The one document of a file. Raises KdscaleError, naming the line where there is one."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise KdscaleError(f"{path} is larger than 1 MiB, which no config is; check the path")
        text = data.decode()
    except FileNotFoundError:
        raise KdscaleError(f"no config file {path}; give the path of a YAML file") from None
    except (OSError, ValueError) as error:
        raise KdscaleError(f"cannot read {path} ({error}); give a UTF-8 YAML file") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises KdscaleError that begins with `where`."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise KdscaleError(f"{where}{line}: {problem}; mend the YAML") from None


class _Loader(yaml.SafeLoader):
    """Aliases that multiply (ten of ten of ten ...) are counted before anything is built, and
    nesting is counted as it is read, so that a small text can take neither memory nor time."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._size = 0
        self._sizes: dict[int, int] = {}  # of the node with that id, aliases followed

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _Refused("an alias inside of what it stands for", mark)
            self._size += self._sizes[id(node)]
        else:
            before = self._size
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise _Refused(f"nested deeper than {MAX_DEPTH}", mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._size += 1 + len(node.value) * isinstance(node, yaml.ScalarNode)
            self._sizes[id(node)] = self._size - before
        if self._size > MAX_SIZE:
            raise _Refused("more than a config can hold, with every alias written out", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What PyYAML has to say of 2001-13-01, !!bool x, !!timestamp x or 5,000 digits.
            kind = node.tag.rpartition(":")[2]
            raise _Refused(f"{str(node.value)[:40]!r} is no {kind}", node.start_mark) from None

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise _Refused("a number that 64 bits cannot hold", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)
