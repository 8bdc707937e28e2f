"""DeepSpeed JSON: read, checked, and resolved for one run. The one place that knows its keys.

    path = located(path)                  # the user's, or by its name one that ships
    config = load(path, overrides)        # strict JSON, then `--override key=value`
    problems = check(config, str(path))   # every problem, one line each
    resolved = resolve(config, ...)       # what deepspeed.initialize is given, all explicit

Files come from the recipes of other trainers too. Three tables say what becomes of a key:

    keys.KEYS     what it may hold; or why it is refused, and with which values it asks for nothing;
                  or why it has no effect here, which is said in the notes
    off           null and what is switched off is taken out on loading, before it can be refused
    auto.VALUES   what "auto" stands for, where it is understood; the notes say what it became

A rate of the schedule that is not written is optimizer.params.lr, as if it were "auto": DeepSpeed's
own is 0.001 for every run. `warmup_min_lr` "auto" is a share of it: DeepSpeed's schedules take the
first two steps at this rate, and its own default of 0 makes them idle. An optimizer that is not
written is AdamW with "auto" throughout, as transformers makes one.
"""

from llama.settings.deepspeed_json.check import batch_sizes, check
from llama.settings.deepspeed_json.read import load, located, of_method
from llama.settings.deepspeed_json.resolve import Resolved, resolve

__all__ = ["Resolved", "batch_sizes", "check", "load", "located", "of_method", "resolve"]
