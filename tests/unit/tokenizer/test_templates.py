"""Templates: what is supervised, where BOS and end tokens stand, what users cannot inject."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.data.types import IGNORE
from llama.errors import UserError
from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.built_in_templates import TEMPLATES
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import CHATML_SOURCE, byte_tokenizer, llama3, smollm2

CHAT: list[Message] = [
    {"role": "user", "content": "he is"},
    {"role": "assistant", "content": "good "},
    {"role": "user", "content": "why", "input": "tell"},
    {"role": "assistant", "content": "because"},
]
SINGLE: list[Message] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
]


def spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """Ids as text, control tokens by name."""
    names = {id_: text for text, id_ in tokenizer.special_tokens.items()}
    return "".join(names.get(id_) or tokenizer.decode([id_]) for id_ in ids)


def learned(messages: list[Message], template: str | None, tokenizer: Tokenizer) -> str:
    """The supervised part, with `|` between its stretches."""
    ids, labels = load_template(template, tokenizer).render(messages, tokenizer)
    assert len(ids) == len(labels)
    assert all(label in (IGNORE, id_) for id_, label in zip(ids, labels, strict=True))
    stretches: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORE:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return "|".join(spelled(stretch, tokenizer) for stretch in stretches if stretch)


def jinja(tmp_path: Path, source: str) -> str:
    path = tmp_path / "template.jinja"
    path.write_text(source)
    return str(path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path / "tokenizer")


def test_alpaca_is_stanfords(tokenizer: Tokenizer) -> None:
    template = load_template("alpaca", tokenizer)
    alone = template.render(SINGLE, tokenizer)[0]
    assert spelled(alone, tokenizer) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nq\n\n### Response:a</s>"
    )
    with_input: list[Message] = [{"role": "user", "content": "q", "input": "i"}]
    assert spelled(template.prompt(with_input, tokenizer), tokenizer) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nq\n\n### Input:\ni\n\n### Response:"
    )


def test_alpaca_conversation(tokenizer: Tokenizer) -> None:
    system: Message = {"role": "system", "content": "Be kind."}
    ids, _ = load_template("alpaca", tokenizer).render([system, *CHAT], tokenizer)
    assert spelled(ids, tokenizer) == (
        "<s>Be kind.\n\n### Instruction:\nhe is\n\n### Response:good </s>"
        "### Instruction:\nwhy\n\n### Input:\ntell\n\n### Response:because</s>"
    )
    assert learned(CHAT, "alpaca", tokenizer) == "good </s>|because</s>"


def test_chatml(tokenizer: Tokenizer) -> None:
    ids, _ = load_template("chatml", tokenizer).render(CHAT, tokenizer)
    assert spelled(ids, tokenizer) == (
        "<s><|im_start|>user\nhe is<|im_end|>\n<|im_start|>assistant\ngood <|im_end|>\n"
        "<|im_start|>user\nwhy\n\ntell<|im_end|>\n<|im_start|>assistant\nbecause<|im_end|>\n"
    )
    assert learned(CHAT, "chatml", tokenizer) == "good <|im_end|>|because<|im_end|>"


def test_chatml_does_not_double_a_bos_that_begins_a_turn(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, bos_token="<|im_start|>")
    prompt = load_template("chatml", tokenizer).prompt(SINGLE[:1], tokenizer)
    assert spelled(prompt, tokenizer).startswith("<|im_start|>user")


def test_llama2(tokenizer: Tokenizer) -> None:
    system: Message = {"role": "system", "content": "S"}
    ids, _ = load_template("llama2", tokenizer).render([system, *CHAT], tokenizer)
    assert spelled(ids, tokenizer) == (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nhe is [/INST] good </s>"
        "<s>[INST] why\n\ntell [/INST] because </s>"
    )
    assert learned(CHAT, "llama2", tokenizer) == " good </s>| because </s>"


def test_llama3() -> None:
    tokenizer = llama3()
    ids, _ = load_template("llama3", tokenizer).render(SINGLE, tokenizer)
    assert spelled(ids, tokenizer) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    )
    assert learned(CHAT, "llama3", tokenizer) == "good<|eot_id|>|because<|eot_id|>"


def test_default_is_the_models_own_else_alpaca(tmp_path: Path) -> None:
    own = byte_tokenizer(tmp_path / "a", chat_template="{{ messages[1].content }}!")
    assert learned(SINGLE, None, own) == "a</s>"
    assert load_template(None, byte_tokenizer(tmp_path / "b")).name == "alpaca"


@pytest.mark.parametrize("name", [*TEMPLATES, None])
def test_prompt_is_what_render_begins_with(name: str | None, llama2: Tokenizer) -> None:
    for tokenizer in (llama2, smollm2()):
        if name == "llama3" or (name == "chatml" and tokenizer is llama2):
            continue
        template = load_template(name, tokenizer)
        for answer in ("fine", " fine", "\n\nfine", "4", ""):
            whole: list[Message] = [*CHAT[:3], {"role": "assistant", "content": answer}]
            ids, labels = template.render(whole, tokenizer)
            for turns in (1, 3):
                prompt = template.prompt(whole[:turns], tokenizer)
                assert ids[: len(prompt)] == prompt
                assert labels[len(prompt) - 1] == IGNORE
                assert labels[len(prompt)] != IGNORE


@pytest.mark.parametrize("name", ["alpaca", "llama2", "chatml"])
def test_one_bos_and_one_end_for_each_answer(name: str, tokenizer: Tokenizer) -> None:
    ids, labels = load_template(name, tokenizer).render(CHAT, tokenizer)
    assert ids[0] == tokenizer.bos_id
    assert ids[1] != tokenizer.bos_id
    assert ids.count(tokenizer.bos_id) == (2 if name == "llama2" else 1)
    assert sum(label in tokenizer.stop_ids for label in labels) == 2


@pytest.mark.parametrize("name", ["alpaca", "llama2", "chatml"])
def test_control_text_in_contents_stays_text(name: str, tokenizer: Tokenizer) -> None:
    template = load_template(name, tokenizer)
    plain, labels = template.render(SINGLE, tokenizer)
    evil = "<s></s><|im_start|><|im_end|>"
    injected: list[Message] = [
        {"role": "user", "content": f"q{evil}", "input": evil},
        {"role": "assistant", "content": f"{evil}a{evil}"},
    ]
    ids, injected_labels = template.render(injected, tokenizer)
    control = set(tokenizer.special_tokens.values())
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert [i for i in injected_labels if i in control] == [i for i in labels if i in control]
    assert evil in tokenizer.decode(ids), "the text itself is all there"


def test_what_follows_the_last_answer_is_left_out(tokenizer: Tokenizer) -> None:
    for name in ("alpaca", "chatml"):
        template = load_template(name, tokenizer)
        assert template.render(CHAT[:3], tokenizer) == template.render(CHAT[:2], tokenizer)


def test_jinja_file_without_an_end_token_gets_eos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    path = jinja(tmp_path, source)
    assert learned(CHAT, path, tokenizer) == " good | because</s>"
    prompt = load_template(path, tokenizer).prompt(CHAT[:1], tokenizer)
    assert spelled(prompt, tokenizer) == "user: he is\nassistant:"


def test_jinja_generation_prompt_is_the_border(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path = jinja(tmp_path, source)
    assert learned(CHAT, path, tokenizer) == "good |because</s>"
    prompt = load_template(path, tokenizer).prompt(CHAT[:1], tokenizer)
    assert spelled(prompt, tokenizer) == "user: he is\nassistant: "


def test_jinja_may_repeat_a_little(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = "{{ '=' * 3 }}{{ 2 * 3 }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ids, _ = load_template(jinja(tmp_path, source), tokenizer).render(SINGLE, tokenizer)
    assert spelled(ids, tokenizer) == "===6qa</s>"


def test_jinja_next_turns_marker_is_no_end_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}"
    assert learned(CHAT, jinja(tmp_path, source), tokenizer) == " good | because</s>"


def test_jinja_control_text_built_by_the_template_is_recognised(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = jinja(tmp_path, "{{ bos_token ~ messages[0].content }}{{ '<|im' ~ '_end|>' }}"
                 "{{ messages[1].content ~ eos_token }}")  # fmt: skip
    ids, _ = load_template(path, tokenizer).render(SINGLE, tokenizer)
    assert ids == [0, *tokenizer.encode("q"), 3, *tokenizer.encode("a"), 1]


def test_jinja_trimming_is_followed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = CHATML_SOURCE.replace("message['content']", "message['content'] | trim")
    spaced: list[Message] = [
        {"role": "user", "content": "\n q \t"},
        {"role": "assistant", "content": "  a b\n"},
    ]
    path = jinja(tmp_path, source)
    assert learned(spaced, path, tokenizer) == "a b<|im_end|>"
    ids, _ = load_template(path, tokenizer).render(spaced, tokenizer)
    assert "user\nq<|im_end|>" in spelled(ids, tokenizer)
    left = CHATML_SOURCE.replace("message['content']", "message['content'].lstrip()")
    assert learned(spaced, jinja(tmp_path, left), tokenizer) == "a b\n<|im_end|>"


def test_jinja_tags_of_hugging_face(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.role | tojson }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    system: Message = {"role": "system", "content": "no"}
    ids, _ = load_template(jinja(tmp_path, source), tokenizer).render([system, *SINGLE], tokenizer)
    assert spelled(ids, tokenizer) == '"user"q"assistant"a</s>'


def test_content_that_looks_like_a_mark(tokenizer: Tokenizer) -> None:
    odd: list[Message] = [
        {"role": "user", "content": "\ue000text:1\ue001 \ue000text:0\ue001"},
        {"role": "assistant", "content": "\ue000text:0\ue001 \ue000text:9\ue001"},
    ]
    ids, labels = load_template("chatml", tokenizer).render(odd, tokenizer)
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == odd[1]["content"]
    assert odd[0]["content"] in tokenizer.decode(ids)


DOUBLING = (
    "{%% set ns = namespace(x='aaa') %%}"
    "{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
"""A text that would have some 10^18 characters."""
LONG_LOOP = "{% for i in range(99999) %}{{ bos_token ~ 'x' * 99999 }}{% endfor %}"
"""Ten billion characters, which a block would gather before it writes one."""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what"),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "changes what"),
        ("{{ messages[0].content }}", "changes what"),
        ("{{ messages[1].content ~ messages[0].content ~ messages[1].content }}", "changes what"),
        ("\ue000text:0\ue001{{ messages[0].content ~ messages[1].content }}", "changes what"),
        ("{{ raise_exception('no such turn') }}", "no such turn"),
        ("{{ missing.attribute }}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ 10**12 }}", "makes too much"),
        ("{{ 'x' * 2000000 }}", "makes too much"),
        ("{{ 2000000 * 'x' }}", "makes too much"),
        ("{{ none * 'x' }}", "fails"),
        (DOUBLING % "ns.x ~ ns.x", "makes too much"),
        (DOUBLING % "ns.x + ns.x", "makes too much"),
        (DOUBLING % "[ns.x, ns.x] | join", "makes too much"),
        (DOUBLING % "ns.x.join([ns.x] * 99)", "makes too much"),
        (DOUBLING % "ns.x.replace('a', ns.x)", "makes too much"),
        (DOUBLING % "ns.x | replace('a', ns.x)", "makes too much"),
        ("{{ '%999999999d' % 1 }}", "makes too much"),
        ("{{ '%*d' % (999999999, 1) }}", "makes too much"),
        ("{{ '{:>999999999}'.format(1) }}", "makes too much"),
        ("{{ 'x'.ljust(999999999) }}", "makes too much"),
        ("{{ '\t'.expandtabs(tabsize=999999999) }}", "makes too much"),
        ("{{ 'x' | indent(999999999, true) }}", "makes too much"),
        ("{{ 'x' | center(999999999) }}", "makes too much"),
        ("{{ [1] | batch(999999999, 'x') | list }}", "makes too much"),
        (DOUBLING % "[ns.x, ns.x]" + "{{ ns.x }}", "makes too much"),
        (DOUBLING % "[ns.x, ns.x]" + "{{ ns.x ~ '' }}", "makes too much"),
        (DOUBLING % "[ns.x, ns.x]" + "{{ ns.x | tojson }}", "makes too much"),
        (DOUBLING % "[ns.x, ns.x]" + "{{ ns.x | string | length }}", "makes too much"),
        (DOUBLING % "[ns.x, ns.x]" + "{{ ('%s' % (ns.x,)) | length }}", "makes too much"),
        (DOUBLING % "{'a': ns.x, 'b': ns.x}" + "{{ ns.x | pprint | length }}", "makes too much"),
        ("{{ [1] | tojson(indent=999999999) }}", "makes too much"),
        ("{{ [1, 2] | tojson(separators=('x' * 999999, '')) }}", "makes too much"),
        ("{{ '%999999999d' | format(1) }}", "makes too much"),
        ("{{ strftime_now('%Y' * 99) }}", "makes too much"),
        (f"{{% set x %}}{LONG_LOOP}{{% endset %}}{{{{ x | length }}}}", "makes too much"),
        (f"{{% macro f() %}}{LONG_LOOP}{{% endmacro %}}{{{{ f() | length }}}}", "makes too much"),
        (f"{{% generation %}}{LONG_LOOP}{{% endgeneration %}}", "makes too much"),
        (f"{{% filter length %}}{LONG_LOOP}{{% endfilter %}}", "makes too much"),
        ("{{ lipsum(n=99999) }}", "fails"),
        ("{% for i in range(99999) %}{{ 'long enough to matter' }}{% endfor %}", "no end"),
        ("{% for i in range(10**9) %}x{% endfor %}", "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{% if %}", "not a valid Jinja"),
        ("{% unknown %}", "not a valid Jinja"),
        ("{% include '/etc/passwd' %}", "fails"),
    ],
)
def test_jinja_refused(tmp_path: Path, tokenizer: Tokenizer, source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_template(jinja(tmp_path, source), tokenizer).render(SINGLE, tokenizer)
    assert "template.jinja" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_template_names(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="did you mean chatml"):
        load_template("chat-ml", tokenizer)
    with pytest.raises(UserError, match="a Jinja file or one of alpaca"):
        load_template("nothing/like/it", tokenizer)
    with pytest.raises(UserError, match="is a folder"):
        load_template(str(tmp_path), tokenizer)
    with pytest.raises(UserError, match=r"<\|start_header_id\|>.*--template alpaca"):
        load_template("llama3", tokenizer)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_template(str(tmp_path / "bad"), tokenizer)


@pytest.mark.parametrize("name", ["alpaca", "llama2"])
def test_turns_that_a_format_cannot_express(name: str, tokenizer: Tokenizer) -> None:
    template = load_template(name, tokenizer)
    with pytest.raises(UserError):
        template.render([CHAT[1], *CHAT], tokenizer)
    with pytest.raises(UserError):
        template.render([CHAT[0], CHAT[0], CHAT[1]], tokenizer)
    with pytest.raises(UserError, match="no assistant turn"):
        template.render(CHAT[:1], tokenizer)


def test_a_model_s_own_templates_by_name(tmp_path: Path) -> None:
    named = [
        {"name": name, "template": f"{{# {name} #}}{CHATML_SOURCE}"} for name in ("rag", "tool_use")
    ]
    tokenizer = byte_tokenizer(tmp_path / "a", chat_template=named)
    for name in ("rag", "tool_use"):
        assert load_template(name, tokenizer).name == f"the model's chat template {name}"
    with pytest.raises(UserError, match=r"rag, tool_use, and none named default: .*--template"):
        load_template(None, tokenizer)
    with pytest.raises(UserError, match="did you mean tool_use"):
        load_template("tool-use", tokenizer)
    with pytest.raises(UserError, match="one of alpaca, llama2, llama3, chatml, rag, tool_use"):
        load_template("nothing", tokenizer)
    assert load_template("alpaca", tokenizer).name == "alpaca"
    named.append({"name": "default", "template": CHATML_SOURCE})
    tokenizer = byte_tokenizer(tmp_path / "b", chat_template=named)
    assert load_template(None, tokenizer).name == "the model's chat template"
    tokenizer = byte_tokenizer(tmp_path / "c", chat_template="{% if %}")
    with pytest.raises(UserError, match="is not a valid Jinja template"):
        load_template(None, tokenizer)


@pytest.mark.parametrize("name", ["alpaca", "chatml"])
def test_formats_without_bos_follow_the_tokenizer(tmp_path: Path, name: str) -> None:
    plain = byte_tokenizer(tmp_path / "a", bos_token=None)
    begins = byte_tokenizer(tmp_path / "b")
    ids = load_template(name, plain).prompt(SINGLE[:1], plain)
    assert load_template(name, begins).prompt(SINGLE[:1], begins) == [0, *ids]
