"""The names of what a run's folder holds; README says what each is."""

ADAPTER, CHECKPOINTS = "adapter", "checkpoints"
RECORD, SUMMARY = "run.json", "summary.json"
METRICS, NORMS, SAMPLES = "metrics.jsonl", "norms.jsonl", "samples.jsonl"
REPORT = "report.html"

WRITTEN = (ADAPTER, RECORD, SUMMARY, METRICS, NORMS, SAMPLES, REPORT)
"""Each as one, so that a killed run may leave a half-made one beside it."""
