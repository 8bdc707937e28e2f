"""The prompt templates known by name, as Jinja source.

Nothing is imported here, so that the settings can name them at once.
"""

from __future__ import annotations

LLAMA2 = """\
{%- if messages and messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}
{%- set messages = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- endif %}
{%- for message in messages %}
{%- if message.role != ['user', 'assistant'][loop.index0 % 2] %}
{{- raise_exception('user and assistant must take turns') }}
{%- elif message.role == 'user' %}
{%- set content = (system if loop.first else '') ~ message.content %}
{{- bos_token ~ '[INST] ' ~ content | trim ~ ' [/INST]' }}
{%- else %}
{{- ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
{%- endif %}
{%- endfor %}"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
{{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
CHATML_BEGIN = "{{- '' if bos_token == '<|im_start|>' else bos_token }}\n"
"""Before ChatML's first turn, where the tokenizer puts BOS before texts: the format has none."""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
ALPACA_ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
ALPACA = f"""\
{{%- if messages[0].role in ['system', 'developer'] %}}
{{%- set introduction = messages[0].content %}}
{{%- set messages = messages[1:] %}}
{{%- endif %}}
{{%- for message in messages %}}
{{%- if message.role != ['user', 'assistant'][loop.index0 % 2] %}}
{{{{- raise_exception('user and assistant must take turns') }}}}
{{%- elif message.role == 'assistant' %}}
{{{{- message.content ~ eos_token }}}}
{{%- else %}}
{{%- if loop.first %}}
{{{{- introduction or ('{ALPACA_WITH_INPUT}' if message.input else '{ALPACA_ALONE}') }}}}
{{{{- '\\n\\n' }}}}
{{%- endif %}}
{{{{- '### Instruction:\\n' ~ message.content ~ '\\n\\n' }}}}
{{{{- ('### Input:\\n' ~ message.input ~ '\\n\\n') if message.input else '' }}}}
{{{{- '### Response:' }}}}
{{%- endif %}}
{{%- endfor %}}"""
"""What `templates.AlpacaTemplate` writes, for other programs; BOS goes before it, where the
tokenizer puts it before texts."""
BUILT_IN = {
    "llama2": (LLAMA2, ()),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
}
"""Jinja source, and the control tokens without which the format cannot be written."""
TEMPLATES = ("alpaca", *BUILT_IN)
"""Every template known by name; `alpaca` is no Jinja but code, `templates.AlpacaTemplate`."""
