"""DeepSpeed JSON: read, checked, and resolved for one run. The one place that knows its keys.

    config = load(path, overrides)        # strict JSON, then `--override key=value`
    problems = check(config, str(path))   # every problem, one line each
    resolved = resolve(config, ...)       # what deepspeed.initialize is given, all explicit

`"auto"` is understood for the keys that follow from others, and nowhere else:

    optimizer.params.lr     1.7 / the width of the model, at most 5e-3
    total_num_steps         the optimizer steps of the run
    warmup_num_steps        3% of them, at least 1
    cycle_first_step_size   30% of them, at least 1
    cycle_second_step_size  the rest
    warmup_max_lr, cycle_max_lr   optimizer.params.lr, also where they are not written
    warmup_min_lr           warmup_max_lr / warmup_num_steps: DeepSpeed's schedules take the first
                            two steps at this rate, and its own default of 0 makes them idle
"""

from llama.settings.deepspeed_json.check import batch_sizes, check
from llama.settings.deepspeed_json.read import load
from llama.settings.deepspeed_json.resolve import Resolved, resolve

__all__ = ["Resolved", "batch_sizes", "check", "load", "resolve"]
