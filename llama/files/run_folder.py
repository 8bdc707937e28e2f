"""The names of what a run's folder holds; README says what each is."""

CHECKPOINTS = "checkpoints"
RECORD, SUMMARY = "run.json", "summary.json"
METRICS, NORMS, SAMPLES = "metrics.jsonl", "norms.jsonl", "samples.jsonl"
REPORT = "report.html"
REPORTED_TO = "report_to.json"
"""By what each place of --report_to knows the run."""
TENSORBOARD = "tensorboard"

WRITTEN = (RECORD, SUMMARY, METRICS, NORMS, SAMPLES, REPORT, REPORTED_TO)
"""Each as one, so that a killed run may leave a half-made one beside it; the same goes for what
came of the run, which its method names (`llama/methods`)."""
