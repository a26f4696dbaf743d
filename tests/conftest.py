"""The steps' tests need torch, so they run with the steps' own environment: `make test` runs both."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["pipeline_steps"]
