# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3.11
MODE ?= instruction
ENVIRONMENT ?= dev
BIN := .venv/bin
APP := .venv/.ready
STEPS := .venv-steps/.ready
BENCH := .venv-bench/.ready
REVIEW := .venv-review/.ready
CDK_CLI := node_modules/.ready
STEP_PACKAGES := build/step_packages/.ready
# What these environments hold is installed by its SHA-256. Only torch is not: its CPU build is another file on each index.
BY_HASH := --quiet --disable-pip-version-check --no-deps --require-hashes
TORCH := $(shell grep '^torch==' requirements-steps.txt)
# The CDK CLI and jsii find our pinned Node.js before any other.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo local test check audit sbom permissions bench bench-curves bench-data bench-endpoint bench-eval bench-operations deploy diff setup constraints clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## the whole product on this machine: deploy, train, evaluate, register, serve (MODE=instruction|domain|chat)
	@$(BIN)/python -m cli demo --mode $(MODE)

local: setup  ## start AWS on this machine with our stacks deployed, and stay
	@$(BIN)/python -m cli local

test: setup  ## every test (those of the reports look at them in Chromium: apt install chromium)
	$(BIN)/pytest -n 2 --dist loadfile
	.venv-steps/bin/python -m pytest tests/pipeline_steps

check: $(APP) $(CDK_CLI) $(STEP_PACKAGES) $(REVIEW)  ## lint, types, and what a security review finds in the templates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m review

audit:  ## known vulnerabilities of every pinned package (needs the network: a database is asked)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	@failed=0; for env in "" "-steps" "-bench" "-review"; do echo "constraints$$env.txt"; \
	  .venv-audit/bin/pip-audit --disable-pip --no-deps -r constraints$$env.txt || failed=1; done; exit $$failed

sbom: $(APP) $(STEP_PACKAGES)  ## the bill of materials of the step code's zip (CycloneDX, beside it in build/step_code/)
	@$(BIN)/python -m review.bill_of_materials

permissions: setup  ## run the tiny product under enforced IAM: every statement and the call that needs it
	$(BIN)/pytest -s tests/end_to_end/test_security.py

bench: setup  ## the figures of the documentation, measured again (bench/results/)
	$(BIN)/python -m bench.local_aws_overhead

bench-data: $(BENCH)  ## data preparation against its peers, 15 thousand to a million rows (an hour; bench/results/)
	.venv-bench/bin/python -m bench.data_prep

bench-curves: $(BENCH)  ## loss curves of ours and TRL's on a real small model (minutes; bench/results/, docs/)
	.venv-bench/bin/python -m bench.loss_curves

bench-eval: $(STEPS)  ## answers of the evaluation generated, against one by one and padded batches (bench/results/)
	.venv-steps/bin/python -m bench.generation

bench-operations: $(APP)  ## 50 executions at once, 1,000 in the history, 60 steps on local AWS (minutes; bench/results/)
	$(BIN)/python -m bench.operations

bench-endpoint: setup  ## what an endpoint adds to a request, and its tokens a second (minutes; bench/results/)
	$(BIN)/python -m bench.endpoint

deploy: $(APP) $(CDK_CLI) $(STEP_PACKAGES)  ## deploy to the AWS account of your credentials (ENVIRONMENT=dev|prod); see docs/aws.md
	npx cdk deploy --all -c environment=$(ENVIRONMENT) $(CDK_OPTIONS)

diff: $(APP) $(CDK_CLI) $(STEP_PACKAGES)  ## what a deployment would change (ENVIRONMENT=dev|prod)
	npx cdk diff --all -c environment=$(ENVIRONMENT)

setup: $(APP) $(STEPS) $(CDK_CLI) $(STEP_PACKAGES)  ## both virtual environments, the CDK CLI, the steps' packages

$(APP): hashes.txt pyproject.toml
	@echo "Setting up .venv: the CDK app, the CLI, local AWS (2.1 GB; minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(BY_HASH) -r hashes.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# .venv-steps plays the container image.
$(STEPS): hashes-steps.txt requirements-steps.txt
	@echo "Setting up .venv-steps: what the container image brings (minutes the first time)"
	@test -x .venv-steps/bin/python || $(PYTHON) -m venv .venv-steps
	@.venv-steps/bin/python -m pip install $(BY_HASH) -r hashes-steps.txt
	@.venv-steps/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-steps.txt $(TORCH)
	@touch $@

# .venv-bench holds the peers of the benchmark; .venv-review what checkov needs. Both are pinned by version.
$(BENCH) $(REVIEW): .venv-%/.ready: requirements-%.txt constraints-%.txt pipeline_steps/requirements.txt
	@echo "Setting up .venv-$*: the packages of requirements-$*.txt (minutes the first time)"
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-$*.txt
	@touch $@

# What travels in the step code's zip: pure Python only, since Python imports it from there.
$(STEP_PACKAGES): pipeline_steps/hashes.txt | $(APP)
	@echo "Setting up the packages that travel with the steps"
	@rm -rf $(@D) && mkdir -p build
	@$(BIN)/python -m pip install $(BY_HASH) --target $(@D) --no-compile --report $(@D).json \
	  --only-binary :all: --implementation py --abi none --platform any -r pipeline_steps/hashes.txt
	@touch $@

$(CDK_CLI): package.json package-lock.json | $(APP)
	@echo "Setting up the CDK CLI"
	@npm ci --silent --no-audit --no-fund
	@touch $@

constraints: setup $(BENCH) $(REVIEW)  ## pin every package that the requirements need, by version and by hash
	@for env in "-dev:" "-steps:-steps" "-bench:-bench" "-review:-review"; do held=$${env#*:}; \
	  .venv$$held/bin/python -m pip install --quiet --disable-pip-version-check -r requirements$${env%:*}.txt; \
	  { echo "# Every package of .venv$$held, pinned; made by 'make constraints'."; \
	    .venv$$held/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints$$held.txt; done
	@$(BIN)/python -m review.hashes

clean:  ## remove what the targets made
	rm -rf .venv .venv-steps .venv-bench .venv-review .venv-audit node_modules build
