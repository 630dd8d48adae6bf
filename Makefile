PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
CHATS ?= ../shared/data/sft_alpaca_en_zh.jsonl

# glibc's allocator keeps what it has (64 GiB are no limit) and asks for pages of 2 MiB: a training
# step is faster, docs/performance.md says by how much. Other systems ignore it.
KEEP_PAGES := glibc.malloc.mmap_threshold=68719476736:glibc.malloc.trim_threshold=68719476736
KEEP_PAGES := $(KEEP_PAGES):glibc.malloc.hugetlb=1

.PHONY: demo demo-rl install test test-slow bench clean

# Writes a small corpus, trains a 5M model on it in four stages, and says what each has improved:
# four to six minutes on two CPU cores with bfloat16, twelve without.
demo: export GLIBC_TUNABLES = $(KEEP_PAGES)
demo: $(VENV)/.installed
	@echo
	@echo "Data: stories, facts and sums in English and Chinese, and questions that are held out."
	$(RUN) -m dataset.demo --out_dir out/demo_data
	@echo
	@echo "1 of 4, pretraining: 5 million numbers that know nothing learn to write."
	$(RUN) train_pretrain.py --optimizer muon --learning_rate 1e-2 --batch_size 8 --max_steps 320 \
		--eval_interval 80 --out_dir out/pretrain
	@echo
	$(RUN) eval_model.py --model out/pretrain --prompt "One sunny morning, a little girl" \
		--temperature 0.5 --max_new_tokens 300 --seed 1
	@echo
	@echo "2 of 4, fine-tuning: it learns to answer what a user asks."
	$(RUN) train_full_sft.py --init_from out/pretrain --optimizer muon --learning_rate 1e-2 \
		--max_seq_len 352 --batch_size 6 --max_steps 260 --eval_interval 130 --out_dir out/full_sft
	@echo
	@echo "3 of 4, an adapter: a toy shop's prices, in weights of their own beside the model's."
	$(RUN) train_lora.py --init_from out/full_sft --lora_alpha 32 --learning_rate 2e-2 \
		--batch_size 8 --max_seq_len 256 --max_steps 60 --out_dir out/lora
	@echo
	@echo "4 of 4, preferences: of two answers, it learns to give the better one."
	$(RUN) train_dpo.py --init_from out/full_sft --sft_weight 1 --learning_rate 3e-4 \
		--warmup_steps 5 --max_seq_len 768 --max_steps 50 --out_dir out/dpo
	@echo
	@echo "What each stage has improved, on questions that no stage has seen:"
	$(RUN) scripts/demo_table.py
	@echo
	@printf '%s\n' "Who are you?" "What is 3 + 4?" "你好，你是谁？" \
		"What is jam made from?" "法国的首都是哪里？" "Thank you!" | \
		$(RUN) eval_model.py --model out/dpo --temperature 0
	@echo
	@echo "Talk to it in the terminal:  $(RUN) eval_model.py --model out/dpo"
	@echo "Chat in a browser, watch training, look inside:  $(RUN) serve_model.py --model out/dpo"
	@echo "Let it learn from rewards, with a tool, from a teacher:  make demo-rl"

# What the model of `make demo` learns from rewards and from a teacher, in four stages: under ten
# minutes on two CPU cores with bfloat16.
STUDENT = --teacher out/full_sft --hidden_size 160 --num_hidden_layers 3 --intermediate_size 520 \
	--max_seq_len 352 --batch_size 6 --optimizer muon --learning_rate 1e-2 --max_steps 130 \
	--eval_interval 65
demo-rl: export GLIBC_TUNABLES = $(KEEP_PAGES)
demo-rl: $(VENV)/.installed
	@test -d out/full_sft || { echo "make demo-rl: expected out/full_sft; make demo trains it"; exit 2; }
	$(RUN) -m dataset.demo --out_dir out/demo_data
	@echo
	@echo "1 of 4, rewards that can be checked: of eight answers to a sum, the right ones become likelier."
	$(RUN) train_grpo.py --batch_size 24 --learning_rate 1.5e-4 --warmup_steps 5 \
		--eval_generations 0 --eval_interval 44 --out_dir out/grpo
	@echo
	@echo "2 of 4, a tool: it is shown how to call the calculator, and learns by trying to do so well."
	$(RUN) train_full_sft.py --init_from out/full_sft --data_path out/demo_data/calculator.jsonl \
		--val_fraction 0 --optimizer muon --learning_rate 4e-3 --warmup_steps 5 \
		--max_seq_len 704 --batch_size 3 --max_steps 60 --out_dir out/calculator_sft
	$(RUN) train_grpo.py --init_from out/calculator_sft --tools calculator --max_new_tokens 96 \
		--batch_size 16 --learning_rate 3e-4 --warmup_steps 5 --max_steps 40 \
		--eval_generations 0 --eval_interval 20 --out_dir out/grpo_calculator
	@echo
	@echo "3 of 4, manners: a reward model learns what is kind, and PPO learns to please it. Twenty steps of"
	@echo "DPO before that: what a model never says, no reward can make likelier."
	$(RUN) train_reward.py --data_path out/demo_data/dpo.jsonl out/demo_data/manners_pairs.jsonl \
		--max_seq_len 768 --learning_rate 3e-4 --warmup_steps 5 --center_rewards_coefficient 0.01
	$(RUN) train_dpo.py --data_path out/demo_data/manners_pairs.jsonl --sft_weight 1 \
		--learning_rate 2e-4 --warmup_steps 5 --max_seq_len 768 --max_steps 20 --out_dir out/manners
	$(RUN) train_ppo.py --init_from out/manners --critic_from out/reward \
		--reward exact=0 model=out/reward --data_path out/demo_data/manners.jsonl \
		--val_data_path out/demo_data/manners_questions.jsonl --max_new_tokens 24 \
		--num_generations 4 --ppo_epochs 1 --minibatches 4 --max_seq_len 512 \
		--learning_rate 1e-4 --warmup_steps 3 --max_steps 12 --log_interval 2 --eval_interval 4 \
		--out_dir out/ppo
	@echo
	@echo "4 of 4, a teacher: a model of 2M learns from the data, and from what the 5M model thinks of it."
	$(RUN) train_distillation.py $(STUDENT) --alpha 1 --out_dir out/student_alone
	$(RUN) train_distillation.py $(STUDENT) --alpha 0 --out_dir out/student
	@echo
	@echo "What each stage has improved, on questions that no stage has seen:"
	$(RUN) scripts/demo_rl_table.py
	@echo
	@printf '%s\n' "/tools calculator" "Tell me what 8 + 7 is." "/reset" "请算一算9 - 4。" | \
		$(RUN) eval_model.py --model out/grpo_calculator --temperature 0
	@echo
	@printf '%s\n' "What is jam made from?" "Thank you!" | \
		$(RUN) eval_model.py --model out/ppo --temperature 0

install: $(VENV)/.installed

# Style, then every quick test. No GPU and no network are used once the packages are installed. Two
# processes test side by side, each with one thread.
test test-slow: export OMP_NUM_THREADS = 1
test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 -m slow -rP

# The speed claims on a CPU, each with its table and a JSON line: under half an hour on two cores.
# Let nothing else run beside. bench_serve.py, bench_watching.py and bench_grpo.py, which may need
# packages of others, are run by hand. benchmarks/gpu.sh does the same on a GPU.
bench: export GLIBC_TUNABLES = $(KEEP_PAGES)
bench: $(VENV)/.installed
	$(RUN) benchmarks/bench_train.py --suite --profile $(if $(wildcard $(CHATS)),--sft $(CHATS))
	$(RUN) benchmarks/bench_kernels.py
	$(RUN) benchmarks/bench_generate.py
	$(RUN) benchmarks/bench_data.py
	$(RUN) benchmarks/bench_checkpoint.py
	$(RUN) benchmarks/bench_time_to_loss.py

$(VENV)/.installed: requirements.txt
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the packages into $(VENV): a minute or two."
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf out .venv .pytest_cache .ruff_cache .hypothesis
