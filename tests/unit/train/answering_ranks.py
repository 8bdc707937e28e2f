"""Two ranks that would each write another text: their models differ, as rounding may make them.

torchrun --nproc_per_node 2 -m tests.unit.train.answering_ranks
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from llama.engine import start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.documents import Documents
from llama.model.transformer import Transformer
from llama.parallel.mesh import create_mesh
from llama.train.samples import Prompt, answers
from tests.support.model_files import TINY, random_state

PROMPTS = [Prompt("", [5, 17, 3, 60]), Prompt("", [1, 2])]


class Tokenizer:
    """Tokens as words. The token that the second rank's model likes best ends a text."""

    def __init__(self, stop: int) -> None:
        self.stop_ids = frozenset({stop})

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def likeliest(model: Transformer) -> int:
    ids = torch.tensor(PROMPTS[0].ids)
    with torch.no_grad():
        return int(model(ids, torch.arange(len(ids)), Documents((0, len(ids))), last=True).argmax())


def main() -> None:
    device = start_processes()
    mesh = create_mesh(1)
    model = Transformer(TINY).to(device)
    model.load_state_dict(random_state(TINY, seed=mesh.rank))
    choices = [0, 0]
    dist.all_gather_object(choices, likeliest(model))
    assert choices[0] != choices[1]
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    said = answers(model, Tokenizer(choices[1]), PROMPTS, mesh)  # type: ignore[arg-type]
    told: list[object] = [None, None]
    dist.all_gather_object(told, (said, len(passes)))
    assert told[0] == told[1], "a rank that stops alone leaves the other in ZeRO-3's gather"
    assert said[0].split()[0] == str(choices[0]), "the first rank's"
    stop_processes()


if __name__ == "__main__":
    run_program(main)
