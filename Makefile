# Every command that people and CI run. `make help` lists them.
# What is installed is decided by two lock files; a set-up whose stamp bears the hash of its lock is not done again.

PYTHON ?= python3
SEED ?= 0
N ?=
MINUTES ?= 10
ARGS ?=
PROCESSES ?= 2
ROWS ?= 2000000
UPGRADE ?=
# What `make demo` plays: the loop in loopline's own words, or scripts written for SageMaker.
SYSTEM ?= patients
# What the demo's project needs: its wheels are put into uv's cache before the demo's clock starts.
DEMO_REQUIREMENTS ?= src/loopline/cli/templates/tabular/requirements.txt

VENV := .venv
RUN := $(VENV)/bin/python
RUNTIME := $(VENV)/.done/runtime-$(shell cat requirements.lock .ci/setup.py | sha256sum | cut -c1-16)
DEV := $(VENV)/.done/dev-$(shell cat requirements.lock requirements-dev.lock .ci/setup.py | sha256sum | cut -c1-16)

WHEELS := $(VENV)/.done/wheels-$(shell cat $(wildcard $(DEMO_REQUIREMENTS)) requirements.lock | sha256sum | cut -c1-16)
# The same for a script of SageMaker: the packages that stand for its image; and the SDK in an environment of its own.
IMAGE := sagemaker-scikit-learn
IMAGE_WHEELS := $(VENV)/.done/image-$(shell cat src/loopline/domain/images.py requirements.lock | sha256sum | cut -c1-16)
SDK := .clients/sagemaker2/installed

DEMO_patients := examples/demo/run.py
DEMO_sentiment := $(wildcard examples/sagemaker-sentiment/demo/run.py)
NEEDS_patients := $(if $(wildcard $(DEMO_REQUIREMENTS)),$(WHEELS))
NEEDS_sentiment := $(IMAGE_WHEELS) $(SDK)

# Targets of scripts: each is there as soon as its script is.
script = $(if $(wildcard $(2)),,$(1))
ABSENT := $(strip none $(call script,demo,examples/demo/run.py) $(call script,faults,tests/faults/run.py) \
	$(call script,rollouts,tests/faults/rollouts.py) $(call script,bad-releases,tests/faults/bad_releases.py) \
	$(call script,multimodel,tests/faults/multimodel.py) $(call script,soak,tests/faults/soak.py) $(call script,batch,benchmarks/batch/run.py) $(call script,bench-pipelines,benchmarks/pipelines/run.py) \
	$(call script,bench-serving,benchmarks/serving/run.py))
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)

.DEFAULT_GOAL := help
.PHONY: help venv test check format lock clean clients huggingface compatibility images bench-aws

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | grep -vE '^($(subst $(SPACE),|,$(ABSENT))):' | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(DEV) ## .venv with loopline, what it needs, and the developers' tools

$(RUNTIME):
	@command -v $(PYTHON) >/dev/null || { echo "loopline needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) .ci/setup.py runtime $@

$(DEV): | $(RUNTIME)
	@$(PYTHON) .ci/setup.py dev $@

test: $(DEV) ## every test, files side by side; ARGS="tests/domain -x" narrows it
	@$(RUN) -m pytest --numprocesses $(PROCESSES) --dist loadfile $(ARGS)

check: $(DEV) ## format, lint, layers, types, dependencies, dead code, house rules
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/mypy
	@$(VENV)/bin/deptry src
	@$(VENV)/bin/vulture
	@$(RUN) -m pytest tests/architecture

format: $(DEV) ## rewrite the code as `make check` wants it
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

ifeq (,$(filter demo,$(ABSENT)))
.PHONY: demo
demo: $(RUNTIME) $(NEEDS_$(SYSTEM)) ## the whole loop on this machine, in a minute; SYSTEM=sentiment: driven by the SageMaker SDK
	@$(if $(DEMO_$(SYSTEM)),,echo "SYSTEM=$(SYSTEM) is unknown: it is patients or sentiment" >&2; exit 2;) \
	$(RUN) $(DEMO_$(SYSTEM)) $(ARGS)

.PHONY: examples
examples: $(RUNTIME) $(NEEDS_patients) $(NEEDS_sentiment) ## every example on a fresh platform; ARGS="credit-scoring" plays one
	@$(RUN) examples/run.py $(ARGS)
endif

$(WHEELS): | $(RUNTIME)
	@$(PYTHON) .ci/setup.py wheels $@ $(DEMO_REQUIREMENTS)

$(IMAGE_WHEELS): | $(RUNTIME)
	@$(RUN) -c "from loopline.domain.images import BUILT_IN; print(BUILT_IN['$(IMAGE)'])" > $(VENV)/.done/$(IMAGE).txt
	@$(PYTHON) .ci/setup.py wheels $@ $(VENV)/.done/$(IMAGE).txt

$(SDK): tests/wire/clients/sagemaker2.txt | $(RUNTIME)
	@$(PYTHON) .ci/setup.py client $<

ifeq (,$(filter faults,$(ABSENT)))
.PHONY: faults
faults: $(DEV) ## break things in the middle of the loop; SEED=7 repeats
	@$(RUN) tests/faults/run.py --seed $(SEED) $(ARGS)
endif

ifeq (,$(filter rollouts,$(ABSENT)))
.PHONY: rollouts
rollouts: $(DEV) ## N rollouts under load, and what clients saw
	@$(RUN) tests/faults/rollouts.py --n $(or $(N),100) $(ARGS)
endif

ifeq (,$(filter bad-releases,$(ABSENT)))
.PHONY: bad-releases
bad-releases: $(DEV) ## N bad releases under load, and how each of them leaves; N=20 SEED=7
	@$(RUN) tests/faults/bad_releases.py --n $(or $(N),20) --seed $(SEED) $(ARGS)
endif

ifeq (,$(filter multimodel,$(ABSENT)))
.PHONY: multimodel
multimodel: $(DEV) ## many models behind one endpoint, under a memory limit; N=200
	@$(RUN) tests/faults/multimodel.py --models $(or $(N),200) $(ARGS)
endif

ifeq (,$(filter soak,$(ABSENT)))
.PHONY: soak
soak: $(DEV) ## load at 70 % while traffic, servers and control come and go; MINUTES=10 SEED=7
	@$(RUN) tests/faults/soak.py --minutes $(MINUTES) --seed $(SEED) $(ARGS)
endif

ifeq (,$(filter batch,$(ABSENT)))
.PHONY: batch
batch: $(DEV) ## a batch of ROWS rows killed on the way: its output exact, its speed beside a plain script
	@$(RUN) benchmarks/batch/run.py --rows $(ROWS) $(ARGS)
endif

ifeq (,$(filter bench-pipelines,$(ABSENT)))
.PHONY: bench-pipelines
bench-pipelines: $(DEV) ## pipelines side by side with peers
	@$(RUN) benchmarks/pipelines/run.py $(ARGS)
endif

ifeq (,$(filter bench-serving,$(ABSENT)))
.PHONY: bench-serving
bench-serving: $(DEV) ## predictions side by side with peers; needs wrk
	@$(RUN) benchmarks/serving/run.py $(ARGS)
endif

clients: $(RUNTIME) ## what tests drive loopline with beside boto3, each in .clients/NAME
	@for file in tests/wire/clients/*.txt tests/wire/clients/*/package.json; do $(PYTHON) .ci/setup.py client $$file; done

images: $(DEV) ## the packages of AWS's framework images: built, trained with and asked; gigabytes
	@LOOPLINE_IMAGES=1 $(RUN) -m pytest tests/wire/test_wire_images.py $(ARGS)

huggingface: ## torch and transformers for the test of fine-tuning: 1.2 GB, by pip
	@test -x .clients/huggingface/bin/python || $(PYTHON) -m venv .clients/huggingface
	@.clients/huggingface/bin/python -m pip install --quiet -r tests/scenarios/huggingface.txt

compatibility: $(DEV) ## docs/compatibility/sagemaker.md from the code
	@$(RUN) -m loopline.fronts.aws.compatibility > docs/compatibility/sagemaker.md.new
	@mv docs/compatibility/sagemaker.md.new docs/compatibility/sagemaker.md

bench-aws: $(DEV) ## what the AWS front costs, and how soon it answers
	@$(RUN) benchmarks/aws/run.py $(ARGS)

lock: $(RUNTIME) ## both lock files from pyproject.toml; UPGRADE=1 takes newer versions
	@$(PYTHON) .ci/setup.py lock $(if $(UPGRADE),--upgrade)

clean: ## remove .venv and every cache of the tools
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
