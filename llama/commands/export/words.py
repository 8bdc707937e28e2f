"""What is said of an export that is done."""

from __future__ import annotations

from typing import Any

from llama.commands.export.job import Job
from llama.commands.export.next_steps import next_steps


def closing(job: Job, document: dict[str, Any]) -> list[str]:
    """What was written, how near it is to what it was made of, and what to do with it."""
    source, folder = job.opened.source, job.folder
    of_what = (
        source.name if job.opened.adapter is None else f"{job.opened.adapter} on {source.name}"
    )
    lines = [f"{of_what}: {document['format']}, {document['dtype']}, {document['bytes']:,} bytes"]
    if document["verified"]:
        lines.append(
            f"read back: a logit differs by {document['largest_difference']:.3g} at most, of "
            f"logits up to {document['largest_logit']:.3g}; all of them by "
            f"{document['difference_share']:.2g} of what they spread by"
        )
    else:
        lines.append("not read back: --verify false")
    lines.append(f"written: {folder}")
    after = next_steps(job, job.format, folder)
    lines += after.warnings
    return [*lines, "next:", *(f"  {line}" for line in after.commands)]
