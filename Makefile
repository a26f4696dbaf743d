# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3.11
MODE ?= instruction
ENVIRONMENT ?= dev
BIN := .venv/bin
APP := .venv/.ready
STEPS := .venv-steps/.ready
CDK_CLI := node_modules/.ready
# The CDK CLI and jsii find our pinned Node.js before any other.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo local test check bench deploy setup constraints clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## the whole product on this machine: deploy, train, evaluate, register, serve (MODE=instruction|domain)
	@$(BIN)/python -m cli demo --mode $(MODE)

local: setup  ## start AWS on this machine with our stacks deployed, and stay
	@$(BIN)/python -m cli local

test: setup  ## every test
	$(BIN)/pytest
	.venv-steps/bin/python -m pytest tests/pipeline_steps

check: $(APP) $(CDK_CLI)  ## lint, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## the figures of the documentation, measured again (bench/results/)
	$(BIN)/python -m bench.local_aws_overhead

deploy: $(APP) $(CDK_CLI)  ## deploy to the AWS account of your credentials (ENVIRONMENT=dev|prod); see docs/aws.md
	npx cdk deploy --all -c environment=$(ENVIRONMENT)

setup: $(APP) $(STEPS) $(CDK_CLI)  ## both virtual environments and the CDK CLI

$(APP): requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@echo "Setting up .venv: the CDK app, the CLI, local AWS (2.1 GB; minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(STEPS): requirements-steps.txt constraints-steps.txt pipeline_steps/requirements.txt
	@echo "Setting up .venv-steps: the steps' packages, playing the container image (torch; 1.2 GB; minutes the first time)"
	@test -x .venv-steps/bin/python || $(PYTHON) -m venv .venv-steps
	@.venv-steps/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-steps.txt
	@touch $@

$(CDK_CLI): package.json package-lock.json | $(APP)
	@echo "Setting up the CDK CLI"
	@npm ci --silent --no-audit --no-fund
	@touch $@

constraints: setup  ## pin every package that the environments hold now
	@for env in "" "-steps"; do \
	  { echo "# Every package of .venv$$env, pinned; made by 'make constraints'."; \
	    .venv$$env/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints$$env.txt; done

clean:  ## remove what the targets made
	rm -rf .venv .venv-steps node_modules build
