"""Keys of a YAML file that are no options of the command: another command's, another trainer's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml

from llama.notes import note
from llama.settings.options.answers import answer, chosen, is_of_value, row_of
from llama.settings.options.kinds import Already

_NULL = "tag:yaml.org,2002:null"


class Foreign:
    """Gathers them, so that a file of another trainer is answered whole and in few lines."""

    def __init__(self, path: Path, of_others: Collection[str]) -> None:
        self._path = path
        self._of_others = of_others
        self._other_commands: list[str] = []
        self._empty: list[str] = []
        self._already: list[str] = []
        self._answers: list[str] = []
        self._heads: set[str] = set()

    def takes(self, name: str, node: yaml.Node) -> bool:
        """Whether the key `name`, at its leaf `node`, is known somewhere; a section of another
        trainer's (`fsdp_config: {...}`) is answered once."""
        plain = name.replace("-", "_")
        value = _value(node)
        if plain in self._of_others and not is_of_value(plain, value):
            self._other_commands.append(name)
            return True
        head = plain.partition(".")[0]
        if row_of(head) is None:
            return False
        if head in self._heads:
            return True
        self._heads.add(head)
        value = value if head == plain else None
        said, found = answer(head, value, in_file=True), chosen(head, value)
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:
            self._empty.append(f"{head} (line {line})")
        elif isinstance(found, Already):
            self._already.append(f"{head} (line {line})")
        elif said is None:
            return False
        else:
            self._answers.append(f"{self._path}: line {line}: {head}{said}")
        return True

    def problems(self) -> list[str]:
        """One line for each key that means something else here, one for all that may be left
        out."""
        lines = list(self._answers)
        for what, names in (("so it is here already", self._already), ("empty", self._empty)):
            if names:
                lines.append(f"{self._path}: {what}; leave out {', '.join(names)}")
        return lines

    def note(self) -> None:
        """Say what is of other commands."""
        if self._other_commands:
            names = ", ".join(self._other_commands)
            note(f"from {self._path}, not of this command: {names}")


def _value(node: yaml.Node) -> str | None:
    """The text of a scalar, or of a list's scalars; of a list of sections, as Axolotl's `datasets:
    [{path: ...}]`, their paths."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL else node.value
    texts: list[str] = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        if isinstance(item, yaml.MappingNode):
            texts += [v.value for k, v in item.value if k.value == "path"]
        elif isinstance(item, yaml.ScalarNode):
            texts.append(item.value)
    return ",".join(map(str, texts)) or None
