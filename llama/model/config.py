"""The sizes of a LLaMA model, and what follows from them: shapes and parameter counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llama.model.scaling import DynamicScaling, RopeScaling

PART_OF = {
    **dict.fromkeys(("wq", "wk", "wv", "wo"), "attention"),
    **dict.fromkeys(("w1", "w2", "w3"), "feed_forward"),
}
"""The part of a block that each of its linear layers belongs to, by Meta's names of both."""
LINEARS = tuple(PART_OF)
"""The linear layers of one block: all that a LoRA adapter can be attached to."""
ROW_PARALLEL = ("wo", "w2")
"""Those that tensor parallelism cuts by their inputs, the columns of the weight; the others it cuts
by their outputs."""
HUGGINGFACE_NAMES = {
    **{"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"},
    **{"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"},
}
"""What Hugging Face calls each of them."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a LLaMA model. Nothing here depends on how it is trained or spread over devices."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_seq_len: int = 2048
    """Positions that the model was made for (`max_position_embeddings`, `context_length`)."""
    tied_embedding: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def ends_at_max_seq_len(self) -> bool:
        """Whether what lies past `max_seq_len` positions cannot be computed at all."""
        return isinstance(self.rope_scaling, DynamicScaling)

    def linear_shape(self, name: str) -> tuple[int, int]:
        """`(out_features, in_features)` of one of `LINEARS`, unsharded."""
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "wq": (q_dim, self.dim),
            "wk": (kv_dim, self.dim),
            "wv": (kv_dim, self.dim),
            "wo": (self.dim, q_dim),
            "w1": (self.ffn_dim, self.dim),
            "w2": (self.dim, self.ffn_dim),
            "w3": (self.ffn_dim, self.dim),
        }[name]

    def has_bias(self, name: str) -> bool:
        """Whether the linear layer `name` carries a bias."""
        return self.attention_bias if PART_OF[name] == "attention" else self.mlp_bias

    def parameter_count(self) -> int:
        """Parameters of the whole model; a tied output matrix is counted once."""
        block = 2 * self.dim
        for name in LINEARS:
            rows, columns = self.linear_shape(name)
            block += rows * columns + (rows if self.has_bias(name) else 0)
        embeddings = (1 if self.tied_embedding else 2) * self.vocab_size * self.dim
        return embeddings + self.n_layers * block + self.dim

    def with_layers(self, n_layers: int) -> ModelConfig:
        """The same widths at another depth."""
        return replace(self, n_layers=n_layers)
