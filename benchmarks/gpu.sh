#!/usr/bin/env bash
# The GPU figures with a bar, every GPU test, then the other figures, on one machine without network,
# in eight minutes at most: a part that does not fit what is left of them is cut off, and can be run
# again by its name. Not yet run on a GPU.
#
#     bash benchmarks/gpu.sh [FOLDER FOR THE LOGS [PART ...]]
#
# It installs nothing and takes the packages that are there (python3, or $PYTHON).
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-out/gpu}
shift $(($# > 0))
PARTS=${*:-all}
DEADLINE=${DEADLINE:-470} # seconds
export PYTHON PYTHONUNBUFFERED=1
mkdir -p "$OUT"
$PYTHON -c 'import torch; assert torch.cuda.is_available()' || { echo "no GPU here" >&2; exit 2; }
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$OUT/machine.txt"
$PYTHON -c 'import sys, torch, transformers; print("python", sys.version.split()[0], "torch",
    torch.__version__, "transformers", transformers.__version__)' | tee -a "$OUT/machine.txt"
$PYTHON -c 'import flash_attn; print("flash-attn", flash_attn.__version__)' 2>/dev/null \
    | tee -a "$OUT/machine.txt"
git rev-parse --short HEAD 2>/dev/null | tee -a "$OUT/machine.txt"

failed=0 ran=0
part() { # name, seconds at most, command: its output goes to the log, its last lines are shown
    local name=$1 limit=$2 left=$((DEADLINE - SECONDS))
    shift 2
    [[ " $PARTS " =~ " all "|" $name " ]] || return
    ran=1
    [ "$limit" -le "$left" ] || limit=$((left > 1 ? left : 1))
    echo "== $name: $*"
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    local status=$?
    tail -n 25 "$OUT/$name.log"
    grep -E "^(FAILED|ERROR)" "$OUT/$name.log"
    [ $status = 0 ] || { echo "== $name ended with status $status after $SECONDS s"; failed=1; }
}

all_tests() { # eight at a time: most of a test is compiling, on a core of its own
    local test="$PYTHON -m pytest -o addopts= -q --tb=short -p no:cacheprovider"
    $test tests/test_memory.py -k too_small # it takes all of the GPU's memory
    local alone=$?
    $test --collect-only -m "not slow" -k "gpu and not too_small" tests/test_gpu.py \
        tests/test_fast_step.py tests/test_memory.py tests/test_writer_and_watch.py | grep :: \
        | xargs -d '\n' -P 8 -n 2 $test && return $alone
}
export -f all_tests

train="$PYTHON benchmarks/bench_train.py --device cuda --rounds 10"
part train_30m_512 90 $train --preset small --seq_len 512 --batch_size 128 --profile
part train_64m_512 45 $train --preset base --seq_len 512 --batch_size 96 --only_ours
part train_64m_2048 45 $train --preset base --seq_len 2048 --batch_size 24 --only_ours
part train_108m_2048 50 $train --preset large --seq_len 2048 --batch_size 16 --only_ours
part experts 60 $train --preset base --seq_len 512 --batch_size 64 --moe
$PYTHON -m dataset.demo --out_dir out/demo_data > /dev/null
part packed 40 $train --preset small --seq_len 768 --batch_size 16 --only_ours \
    --sft out/demo_data/sft.jsonl
part generate 90 $PYTHON benchmarks/bench_generate.py --device cuda --batch_sizes 64
part checkpoint 30 $PYTHON benchmarks/bench_checkpoint.py --device cuda --preset base
part tests 200 bash -c all_tests
# what the time may not suffice for: call these by name
part cuda_graphs 30 $train --preset demo --seq_len 256 --batch_size 8 --only_ours --cuda_graphs
part no_cuda_graphs 20 $train --preset demo --seq_len 256 --batch_size 8 --only_ours
part kernels 45 $PYTHON benchmarks/bench_kernels.py --device cuda --rows 16
part train_30m_2048 45 $train --preset small --seq_len 2048 --batch_size 32 --only_ours
part train_108m_512 50 $train --preset large --seq_len 512 --batch_size 64 --only_ours
[ $ran = 1 ] || { echo "no such part: $PARTS" >&2; exit 2; }
exit $failed
