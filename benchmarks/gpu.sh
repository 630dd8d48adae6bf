#!/usr/bin/env bash
# Every GPU figure, and then the GPU tests, on one machine without network. Each part has a limit; the
# figures together take at most eight minutes, the tests up to ten more. Not yet run on a GPU.
#
#     bash benchmarks/gpu.sh [FOLDER FOR THE LOGS]
#
# It installs nothing and takes the packages that are there (python, or $PYTHON).
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-out/gpu}
export PYTHONUNBUFFERED=1
mkdir -p "$OUT"
$PYTHON -c 'import torch; assert torch.cuda.is_available()' || { echo "no GPU here" >&2; exit 2; }
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$OUT/machine.txt"
$PYTHON -c 'import sys, torch, transformers; print("python", sys.version.split()[0], "torch",
    torch.__version__, "transformers", transformers.__version__)' | tee -a "$OUT/machine.txt"
git rev-parse --short HEAD 2>/dev/null | tee -a "$OUT/machine.txt"

failed=0
part() { # name, seconds at most, command: its output goes to the log, its last lines are shown
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    local status=$?
    tail -n 25 "$OUT/$name.log"
    [ $status = 0 ] || { echo "== $name ended with status $status"; failed=1; }
}

train="$PYTHON benchmarks/bench_train.py --device cuda --rounds 10"
part train_30m_512 120 $train --preset small --seq_len 512 --batch_size 128
part train_64m_512 45 $train --preset base --seq_len 512 --batch_size 96 --only_ours
part train_64m_2048 45 $train --preset base --seq_len 2048 --batch_size 24 --only_ours
part train_108m_2048 60 $train --preset large --seq_len 2048 --batch_size 16 --only_ours
part experts 75 $train --preset base --seq_len 512 --batch_size 64 --moe
part generate 100 $PYTHON benchmarks/bench_generate.py --device cuda --batch_sizes 64
part checkpoint 35 $PYTHON benchmarks/bench_checkpoint.py --device cuda --preset base
part tests 600 $PYTHON -m pytest -q tests/test_gpu.py tests/test_fast_step.py tests/test_memory.py \
    tests/test_writer_and_watch.py
exit $failed
