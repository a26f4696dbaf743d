"""Names of outputs and files that one room writes and another reads."""

# Outputs of the processing steps; each is a folder /opt/ml/processing/output/<name>.
REPORT_OUTPUT = "report"
EVALUATION_OUTPUT = "evaluation"
DEPLOYMENT_OUTPUT = "deployment"
COMPARISON_OUTPUT = "comparison"
DRIFT_OUTPUT = "drift"
MODEL_OUTPUT = "model"
# ToJumpStart's: dataset split -> output; a channel of JumpStart's training is named as its output is after the hyphen.
JUMPSTART_OUTPUTS = {"train": "jumpstart-training", "validation": "jumpstart-validation"}

DATA_CARD_FILE = "data_card.json"
DATA_CARD_PAGE = "data_card.html"
QUARANTINE_FILE = "quarantine.jsonl"  # bad rows that were set aside, with their reasons
CUT = "… "  # begins a text in the data card whose front was left out
REMOVED_FILE = "removed.jsonl"  # duplicates, with the rows that were kept in their place
EVALUATION_FILE = "evaluation.json"
ANSWERS_FILE = "answers.jsonl"  # one line for each answered row or prompt; contract/evaluation.py
MODEL_CARD_FILE = (
    "model_card.json"  # {"content": SageMaker's model card as text}: the pipeline attaches it to the package
)
REPORT_FILE = "report.html"
DEPLOYMENT_FILE = "deployment.json"
COMPARISON_FILE = "comparison.json"
COMPARISON_TABLE = "comparison.md"
DRIFT_FILE = "drift.json"

NO_PACKAGE = "none"  # in the data card, where no model of the group is approved

# A dataset split: the rows, and the file that says what they are, written last.
EXAMPLES_FILE = "examples.jsonl"
DATASET_FILE = "dataset.json"

# A model folder of ours, beside the usual transformers files.
BASE_MODEL_FILE = "base_model.json"
PROMPT_TEMPLATE_FILE = "prompt_template.json"
CHAT_FORMAT_FILE = "chat_format.json"  # how a dialog reads; contract/chat_format.py
HYPERPARAMETERS_FILE = "hyperparameters.json"
TRAINING_FILE = "training.json"
SEEN_ROWS_FILE = "seen_rows.hashes"  # which rows the model was trained on; contract/seen_rows.py
ADAPTER_FOLDER = "adapter"
BASE_MODEL_SCHEMA_VERSION = 1
WEIGHT_BYTES = "weight_bytes"  # in BASE_MODEL_FILE of a folder that is without its weights: their size
TRAINING_SCHEMA_VERSION = 1
DATA_CARD_SCHEMA_VERSION = 3
MODEL_CARD_SCHEMA_VERSION = 1

# What JumpStart's training reads and is told (pipeline_steps/to_jumpstart.py).
JUMPSTART_DATA_FILE = "jumpstart_data.json"

# What a user uploads.
TEMPLATE_FILE = "template.json"
PROMPTS_FILE = "prompts.txt"
