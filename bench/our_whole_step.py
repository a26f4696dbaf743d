"""PrepareData itself as a case of data_prep.py: with every check that it makes, then the packed sequences."""

from pathlib import Path

from bench import our_preparation
from pipeline_steps import prepare_data
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.sagemaker_job import Instances


def whole_step(jsonl: Path, tokenizer_folder: Path, output: Path, capacity: int) -> None:
    """Check, search, deduplicate, divide, write and encode; then gather every packed sequence once."""
    raw = output / "raw"
    raw.mkdir()
    (raw / "rows.jsonl").symlink_to(jsonl)
    job = prepare_data.PrepareJob(
        str(raw),
        output / "report",
        our_preparation.MODE,
        tokenizer=tokenizer_folder,
        max_input_length=capacity,
        max_truncated_share=0.05,  # about one generated row in a hundred is longer
    )
    prepare_data.prepare(job, output, InstancesEngine(output, Instances(), ""), 0.0)
    for path in our_preparation.token_files_below(output):
        our_preparation.gather(path, capacity)
