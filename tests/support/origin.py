"""What a run says of itself, for a test that writes a result without a run."""

from __future__ import annotations

from llama.methods.about import About, Origin

ORIGIN = Origin(
    method="lora",
    base={"name": "tiny", "path": None, "hub": None, "sampled_sha256": "0" * 64},
    tokenizer={"sha256": "1" * 64},
    template="a template of its own",
    jinja="{% for message in messages %}{{ message.content }}{% endfor %}",
    seq_len=64,
    data=[
        {
            "option": "data",
            "names": ["rows.json"],
            "more_names": 2,
            "hub": ["who/what"],
            "sha256": "2" * 64,
            "rows": 1200,
            "examples": 1100,
            "tokens": 50000,
            "supervised_tokens": 9000,
        }
    ],
    settings={"lora.rank": 4, "lora.targets": ("wq", "wv"), "steps": 8},
    versions={"torch": "0"},
)


def about(step: int) -> About:
    """After `step` steps, with an evaluation before them and at this one."""
    return About(ORIGIN, step, 2.5, 1.25, (2.0, 1.5))
