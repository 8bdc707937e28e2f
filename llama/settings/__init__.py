"""The settings of each command, and every check of them that needs no model.

What DeepSpeed understands (precision, batch, optimizer, schedule, ZeRO) is not here: the DeepSpeed
JSON owns it (`llama/settings/deepspeed_json`), so nothing is set in two places.
"""

from llama.settings.chat_command import ChatOptions, check_chat
from llama.settings.combine_command import CombineOptions, check_combine
from llama.settings.commands import (
    AblateOptions,
    BenchmarkOptions,
    LoRAOptions,
    PlanOptions,
    TrainOptions,
    VerifyOptions,
)
from llama.settings.data_command import DataOptions, check_data
from llama.settings.evaluate_command import EvaluateOptions, check_evaluate
from llama.settings.export_command import ExportOptions, check_export
from llama.settings.generate_command import GenerateOptions, check_generate
from llama.settings.model import AdapterOptions, ModelOptions
from llama.settings.report_command import ReportOptions
from llama.settings.shard_base import base_sharers
from llama.settings.validate import (
    check_ablate,
    check_benchmark,
    check_lora,
    check_plan,
    check_train,
    checked_plan,
    checked_train,
    checked_verify,
    idle_notes,
)

__all__ = [
    "AblateOptions",
    "AdapterOptions",
    "BenchmarkOptions",
    "ChatOptions",
    "CombineOptions",
    "DataOptions",
    "EvaluateOptions",
    "ExportOptions",
    "GenerateOptions",
    "LoRAOptions",
    "ModelOptions",
    "PlanOptions",
    "ReportOptions",
    "TrainOptions",
    "VerifyOptions",
    "base_sharers",
    "check_ablate",
    "check_benchmark",
    "check_chat",
    "check_combine",
    "check_data",
    "check_evaluate",
    "check_export",
    "check_generate",
    "check_lora",
    "check_plan",
    "check_train",
    "checked_plan",
    "checked_train",
    "checked_verify",
    "idle_notes",
]
