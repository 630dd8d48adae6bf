PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo install test test-slow clean

# Writes a small corpus, trains a 5M model on it and lets it tell a story: minutes on two CPU cores.
demo: $(VENV)/.installed
	$(RUN) -m dataset.demo --out_dir out/demo_data
	$(RUN) train_pretrain.py --optimizer muon --learning_rate 1e-2 --batch_size 8 --max_steps 320 \
		--eval_interval 80 --out_dir out/pretrain
	$(RUN) eval_model.py --model out/pretrain --prompt "One sunny morning, a little girl" \
		--temperature 0.5 --max_new_tokens 300 --seed 1
	@echo
	@echo "Talk to it yourself:  $(RUN) eval_model.py --model out/pretrain"

install: $(VENV)/.installed

# Style, then every quick test. No GPU and no network are used once the packages are installed.
test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -m slow

$(VENV)/.installed: requirements.txt
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf out .venv .pytest_cache .ruff_cache .hypothesis
