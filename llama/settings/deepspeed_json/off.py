"""What a DeepSpeed JSON writes without asking for anything: null, a section that is switched off, a
key that is not supported with the value that stands for "not used". Recipes write such things in
full. They are taken out before anything else is looked at, so that a setting is refused for what it
would do and never for being written.
"""

from __future__ import annotations

from typing import Any

from llama.settings.deepspeed_json.keys import KEYS
from llama.settings.deepspeed_json.kinds import Refused, Table, Unused


def without_what_is_off(section: dict[str, Any], table: Table = KEYS) -> dict[str, Any]:
    """`section`, to be read by `table`, less what asks for nothing, however deep."""
    kept = {}
    for name, value in section.items():
        node = table.get(name)
        if _is_off(value, node):
            continue
        if isinstance(value, dict) and isinstance(node, dict):
            value = without_what_is_off(value, node)
        kept[name] = value
    return kept


def _is_off(value: Any, node: Any) -> bool:
    if value is None:
        return True
    if isinstance(node, Unused):
        return value is False
    if isinstance(node, Refused):
        return _asks_for_nothing(value, node)
    if isinstance(node, dict):  # optimizer, schedule and ZeRO have no such switch
        return value is False or ("enabled" in node and _switched_off(value))
    return node is None and _switched_off(value)


def _switched_off(value: Any) -> bool:
    return value == {} or (isinstance(value, dict) and value.get("enabled") is False)


def _asks_for_nothing(value: Any, node: Refused) -> bool:
    if isinstance(value, dict):
        rest = (v for name, v in value.items() if name not in node.idle_keys)
        return _switched_off(value) or all(_asks_for_nothing(v, node) for v in rest)
    if value is False:  # unless the key is one that is on by itself
        return not any(idle is True for idle in node.idle)
    if value is True:  # which is equal to 1
        return any(idle is True for idle in node.idle)
    return value is None or value == [] or value in node.idle
