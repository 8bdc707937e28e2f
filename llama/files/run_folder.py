"""The names of what a run's folder holds; README says what each is."""

CHECKPOINTS, BEST = "checkpoints", "best"
RECORD, SUMMARY = "run.json", "summary.json"
METRICS, NORMS, SAMPLES = "metrics.jsonl", "norms.jsonl", "samples.jsonl"
REPORT = "report.html"

WRITTEN = (RECORD, SUMMARY, METRICS, NORMS, SAMPLES, REPORT)
"""Each as one, so that a killed run may leave a half-made one beside it; the same goes for what
came of the run, which its method names (`llama/methods`)."""
