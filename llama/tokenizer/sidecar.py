"""What lies beside a tokenizer file in a Hugging Face folder: the names of its tokens, tokens added
to it, what stands around a text, stop ids and chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.outside import TOKENIZER_BYTES, read_bytes, refused
from llama.notes import note
from llama.tokenizer.added import FLAGS, AddedToken
from llama.tokenizer.named_templates import read_templates

CONFIG = "tokenizer_config.json"
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ATTRIBUTES = tuple(f"{name}_token" for name in _NAMES)
"""In the order in which transformers adds those that no vocabulary holds."""
LISTS = ("extra_special_tokens", "additional_special_tokens")
"""Two names of one field, the newer first."""
READ = frozenset(
    {"added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy"}
    | {"chat_template", "tokenizer_class", "fast_tokenizer_files", "split_special_tokens", *LISTS}
)
SETTLES_NOTHING = frozenset(
    {"name_or_path", "is_local", "local_files_only", "backend", "transformers_version"}
    | {"processor_class", "model_input_names", "padding_side", "pad_to_multiple_of"}
    | {"pad_token_type_id", "truncation_side", "truncation_strategy", "stride", "max_length"}
    | {"special_tokens_map_file"}
)
"""Where a file came from, and how batches are padded and texts cut off: done otherwise here."""


@dataclass(frozen=True)
class Sidecar:
    """Settings found beside a tokenizer; `None` or empty where nothing says."""

    folder: Path
    configured: bool = False
    """Whether there is a tokenizer_config.json: then the rules are transformers', not Meta's."""
    tokenizer_class: str | None = None
    named: dict[str, str] = field(default_factory=dict)
    """Name to text, e.g. `eos_token` to `</s>`: what templates can name."""
    added: tuple[AddedToken, ...] = ()
    """All that are to be in the vocabulary, those of `named` included, in transformers' order."""
    redescribes: bool = False
    """Whether `added` goes before what a tokenizer.json says of the same tokens."""
    unnamed: frozenset[str] = frozenset()
    """Names that are said to have no token."""
    unlisted: frozenset[str] = frozenset()
    """Tokens that a name is given to, and that no list of tokens holds."""
    eos_ids: tuple[int, ...] = ()
    """`eos_token_id` of generation_config.json, or of GGUF's metadata: ids that end an answer."""
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool = False
    chat_templates: dict[str, str] = field(default_factory=dict)
    """By name; a single one is `default`."""

    @property
    def source(self) -> str:
        """The file that a message about all this names."""
        return str(self.folder / CONFIG)


def read_sidecar(folder: Path) -> Sidecar:
    """Read the JSON files and templates of `folder`. Raises UserError if malformed, or where a
    field asks for what is not done here and would change ids; fields that are not acted on are
    named in a note."""
    config = _read_json(folder / CONFIG)
    special = _read_json(folder / "special_tokens_map.json")
    generation = _read_json(folder / "generation_config.json")
    settings = _settings(folder, config, special)
    class_ = settings.get("tokenizer_class") or _read_json(folder / "config.json").get(
        "tokenizer_class"
    )
    if class_ is not None and not isinstance(class_, str):
        raise UserError(f"{folder / CONFIG}: `tokenizer_class` must be text; download it again")
    with refused(folder / CONFIG, "has tokens that are not as transformers writes them"):
        tokens = dict(_named(settings))
        extra = _extra(settings)
        added = _added(folder, settings, tokens, extra)
    return Sidecar(
        folder=folder,
        configured=bool(config),
        tokenizer_class=class_ and class_.removesuffix("Fast"),
        named={name: token.content for name, token in tokens.items()},
        added=tuple(added),
        redescribes="added_tokens_decoder" in settings,
        unlisted=frozenset(
            {token.content for token in tokens.values()}
            - {token.content for token in (*extra, *(t for t in added if t.id is not None))}
        ),
        unnamed=frozenset(name for name in ATTRIBUTES if name in settings and not settings[name]),
        eos_ids=eos_ids_of(generation),
        add_bos=_switch(folder, settings, "add_bos_token"),
        add_eos=_switch(folder, settings, "add_eos_token"),
        add_prefix_space=_switch(folder, settings, "add_prefix_space"),
        legacy=bool(_switch(folder, settings, "legacy")),
        chat_templates=read_templates(folder, config.get("chat_template"), folder / CONFIG),
    )


def eos_ids_of(generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer by a generation_config.json. transformers ends one with no others,
    vLLM with EOS besides."""
    given = generation.get("eos_token_id")
    listed = given if isinstance(given, list) else [given]
    return tuple(id_ for id_ in listed if type(id_) is int and id_ >= 0)


def settle_unplaced(
    path: Path, placed: Sequence[AddedToken], vocabulary: Mapping[str, int], beside: Sidecar
) -> None:
    """Names the tokens whose id no file gives. UserError, naming the vocabulary's file `path`,
    where BOS or EOS is named and nowhere to be found: it is more likely another model's."""
    told = {token.content for token in beside.added if token.id is not None}
    new = [t for t in placed if t.content not in vocabulary and t.content not in told]
    for kind in ("BOS", "EOS"):
        text = beside.named.get(f"{kind.lower()}_token")
        if text in beside.unlisted and any(token.content == text for token in new):
            raise UserError(f"{path}: its {kind} token {text[:60]!r} is not in the vocabulary")
    if new:
        which = ", ".join(f"{token.content} {token.id}" for token in new)
        note(f"{beside.source}: no file gives an id to these tokens; they get the next: {which}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_bytes(path, "a JSON file", TOKENIZER_BYTES)
    with refused(path, "is not valid JSON; download it again"):
        value = json.loads(data)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold one JSON object; download it again")
    return value


def _settings(folder: Path, config: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, with the older special_tokens_map.json over it; where the former has
    `added_tokens_decoder`, transformers does not read the latter, and neither is it read here."""
    path = folder / CONFIG
    if config.get("split_special_tokens"):
        raise UserError(
            f"{path}: `split_special_tokens` is true, by which the control tokens of a chat "
            "template are cut into ordinary ones; set it to false"
        )
    files = config.get("fast_tokenizer_files") or []
    if files != [JSON] and files:
        raise UserError(
            f"{path}: `fast_tokenizer_files` names {str(files)[:200]}, for other "
            "versions of transformers; give the file you mean with --tokenizer, without that field"
        )
    unused = sorted(name for name, value in config.items() if not _acted_on(name, value))
    if unused:
        note(f"{path}: not used here: {', '.join(unused)}")
    if "added_tokens_decoder" not in config:
        return {**config, **special}
    ignored = [name for name in special if _content(special[name]) != _content(config.get(name))]
    if ignored:
        note(
            f"{folder / 'special_tokens_map.json'}: not used, as {CONFIG} has "
            f"`added_tokens_decoder` and goes before it: {', '.join(sorted(ignored))}"
        )
    return config


JSON = "tokenizer.json"


def _acted_on(name: str, value: Any) -> bool:
    known = name in READ or name in SETTLES_NOTHING or name in ATTRIBUTES
    return known or value in (None, "", [], {}, False) or _names_a_token(name, value)


def _names_a_token(name: str, value: Any) -> bool:
    """A model's own names for tokens end so too, e.g. `image_token`."""
    return name.endswith("_token") and isinstance(value, str | dict)


def _content(value: Any) -> Any:
    if isinstance(value, list):
        return [_content(item) for item in value]
    return value.get("content", value) if isinstance(value, dict) else value


def _token(value: Any, special: bool, id_: int | None = None) -> AddedToken:
    """A token written as text, or as an object with its text under `content`."""
    if isinstance(value, str):
        return AddedToken(value, special, normalized=not special, id=id_)
    flags = {name: bool(value[name]) for name in FLAGS if name in value}
    content = value["content"]
    if not isinstance(content, str):
        raise TypeError(f"content {content!r} is no text")
    return AddedToken(content, **{"normalized": not special, **flags, "special": special}, id=id_)


def _named(settings: dict[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Each name of a token, and the token."""
    own = [name for name in settings if name not in ATTRIBUTES and name not in LISTS]
    for name in (*ATTRIBUTES, *own):
        value = settings.get(name)
        if value and _names_a_token(name, value):
            yield name, _token(value, special=True)
    for name in LISTS:
        if isinstance(settings.get(name), dict):
            for key, value in settings[name].items():
                yield key, _token(value, special=True)


def _extra(settings: dict[str, Any]) -> list[AddedToken]:
    """Control tokens without a name."""
    found = next((settings[name] for name in LISTS if settings.get(name)), [])
    return [] if isinstance(found, dict) else [_token(value, special=True) for value in found]


def _added(
    folder: Path, settings: dict[str, Any], named: dict[str, AddedToken], extra: list[AddedToken]
) -> list[AddedToken]:
    """Those with an id in the order of their ids, then those with a name, then the others. A token
    that has a name is a control token wherever else it is written."""
    control = {token.content for token in (*named.values(), *extra)}
    if "added_tokens_decoder" in settings:
        given = {
            int(id_): _token(value, value["content"] in control or bool(value.get("special")))
            for id_, value in settings["added_tokens_decoder"].items()
        }
    else:
        path = folder / "added_tokens.json"
        with refused(path, "must hold texts and their ids"):
            given = {
                int(id_): _token(content, content in control)
                for content, id_ in _read_json(path).items()
            }
    with_id = [_with_id(given[id_], id_) for id_ in sorted(given)]
    return [*with_id, *named.values(), *extra]


def _with_id(token: AddedToken, id_: int) -> AddedToken:
    return AddedToken(**{**vars(token), "id": id_})


def _switch(folder: Path, settings: dict[str, Any], name: str) -> bool | None:
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{folder / CONFIG}: `{name}` must be true or false, not {value!r:.60}")
    return value
