# make train: sets up and trains on photographs that need no download.  make test: sets up and runs the checks.
# make service-up: trains in a container, with TensorBoard at http://localhost:6006.  make service-down: ends both.
# An accelerator: make train ACCELERATOR=cuda (or rocm, tpu).  Another Python: make train PYTHON=python3.12

PYTHON ?= python3
ACCELERATOR ?= cpu
CONFIG ?= configs/sample.py
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
ACCELERATORS := cpu cuda rocm tpu

ifeq ($(filter $(ACCELERATOR),$(ACCELERATORS)),)
$(error ACCELERATOR=$(ACCELERATOR) is unknown. Available: $(ACCELERATORS))
endif
comma := ,
EXTRA := $(if $(filter-out cpu,$(ACCELERATOR)),$(comma)$(ACCELERATOR))
INSTALLED := $(VENV)/.installed-$(ACCELERATOR)

# Of cpu and cuda alone.
COMPOSE := ACCELERATOR=$(ACCELERATOR) CONFIG=$(CONFIG) ARGS='$(ARGS)' OWNER="$$(id -u):$$(id -g)" docker compose \
	-f docker-compose.yaml $(if $(filter cuda,$(ACCELERATOR)),-f docker-compose.cuda.yaml)

.PHONY: train test format service-up service-down clean

train: $(INSTALLED)
	$(BIN)/python -m p2p_jax.main --config=$(CONFIG) --workdir=runs/$(notdir $(basename $(CONFIG))) $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

service-up:
	mkdir -p data runs
	$(COMPOSE) up --build --detach

service-down:
	$(COMPOSE) down

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test$(EXTRA)]'
	touch $@

clean:
	rm -rf $(VENV)
