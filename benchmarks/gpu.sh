#!/usr/bin/env bash
# What only a GPU can show, on one machine without network, in ten minutes at most: first whether it
# is right (the GPU tests, a run's losses beside a CPU's), then the figures that have a bar, then the
# others. Every part has a limit of its own, so that one that hangs costs only itself; what the time
# does not suffice for can be run again by its name. Not yet run on a GPU.
#
#     bash benchmarks/gpu.sh [FOLDER [PART ...]]    # all parts, or those that are named
#     python3 benchmarks/gpu_tables.py FOLDER       # makes the tables of docs/performance.md of it
#     DEVICE=cpu bash benchmarks/gpu.sh FOLDER      # tries the script: tiny sizes, nothing compiled
#
# It installs nothing and takes the packages that are there (python3, or $PYTHON).
set -u
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
DEVICE=${DEVICE:-cuda}
DEADLINE=${DEADLINE:-570} # seconds
OUT=${1:-out/gpu}
shift $(($# > 0))
PARTS=${*:-all}
mkdir -p "$OUT"
$PYTHON benchmarks/gpu_tables.py "$OUT" --machine --device "$DEVICE" || exit 2

# rows are for 80 GB; 24 GB take a quarter of them
GB=$($PYTHON -c "import json; print(json.load(open('$OUT/machine.json'))['memory_gb'])")
PART_OF=$((GB >= 70 ? 1 : GB >= 35 ? 2 : GB >= 20 ? 4 : 8))

train() { # preset, tokens per row, rows, more flags: the command
    local size="--preset $1 --seq_len $2 --batch_size $(($3 / PART_OF))"
    [ "$DEVICE" = cuda ] || size="--preset demo --seq_len $(($2 > 700 ? 128 : 32)) --batch_size 2"
    [ "$DEVICE" = cuda ] || size="$size --no-compile"
    echo "$PYTHON benchmarks/bench_train.py --device $DEVICE --rounds $ROUNDS $size ${*:4}"
}
[ "$DEVICE" = cuda ] && ROUNDS=10 || ROUNDS=5

names=() # of the steps, in this order
declare -A step
add() { names+=("$1") && step[$1]=$(train "${@:2}"); }
add train_64m_512 base 512 96 --only_ours --profile
add train_30m_512 small 512 128
add train_108m_512 large 512 64 --only_ours
add train_64m_2048 base 2048 24 --only_ours
add train_30m_2048 small 2048 32 --only_ours
add train_108m_2048 large 2048 16 --only_ours
add packed small 768 64 --only_ours --sft "$OUT/demo_data/sft.jsonl"
add experts base 512 64 --moe
add muon base 512 96 --only_ours --optimizer muon

failed=0 ran=0
part() { # name, seconds at most, command: output to NAME.log, its last line to NAME.json
    local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) began=$SECONDS
    shift 2
    [[ " $PARTS " =~ " all "|" $name " ]] || return
    ran=1
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name: $*"
    local status=124 # no time is left
    if [ "$limit" -gt 0 ]; then
        timeout -k 5 "$limit" "$@" > "$OUT/$name.log" 2>&1
        status=$?
        tail -n 25 "$OUT/$name.log"
        grep -E "^(FAILED|ERROR)" "$OUT/$name.log"
        tail -n 1 "$OUT/$name.log" | grep '^{' > "$OUT/$name.json" || rm "$OUT/$name.json"
    fi
    echo "{\"part\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - began))}" \
        >> "$OUT/parts.jsonl"
    [ $status = 0 ] || { echo "== $name ended with status $status, $SECONDS s after the start"; failed=1; }
}

all_tests() { # eight at a time: most of a test is compiling, on a core of its own
    local test="$PYTHON -m pytest -o addopts= -q --tb=short -p no:cacheprovider"
    [ "$DEVICE" = cuda ] || { $test tests/test_gpu.py && return; }
    $test tests/test_memory.py -k too_small # it takes all of the GPU's memory
    local alone=$?
    $test --collect-only -m "not slow" -k "gpu and not too_small" tests/test_gpu.py \
        tests/test_fast_step.py tests/test_memory.py tests/test_writer_and_watch.py | grep :: \
        | xargs -r -d '\n' -P 8 -n 2 $test && return $alone
}

compile_all() { # three at a time: what they compile is kept on the disk, and the parts find it there
    printf '%s --only_compile\n' "$@" | xargs -d '\n' -P 3 -I COMMAND bash -c COMMAND
}
export -f all_tests compile_all
export DEVICE

part tests 170 bash -c all_tests
curve_flags="--device $DEVICE"
[ "$DEVICE" = cuda ] || curve_flags="$curve_flags --dtype float32 --no-compile --steps 10"
part curve 75 $PYTHON benchmarks/bench_curve.py $curve_flags
$PYTHON -m dataset.demo --out_dir "$OUT/demo_data" > /dev/null
if [ "$DEVICE" = cuda ]; then
    part compile 170 bash -c 'compile_all "$@"' compile_all "${step[@]}"
    decode="--preset base --batch_sizes 64 --repeats 3"
else
    decode="--preset demo --batch_sizes 2 --repeats 1 --new_tokens 4 --no-compile"
fi
for name in "${names[@]:0:2}"; do part "$name" 75 ${step[$name]}; done
part generate 90 $PYTHON benchmarks/bench_generate.py --device $DEVICE --dtypes bf16 \
    --prompt_lengths 512 $decode
for name in "${names[@]:2}"; do part "$name" 60 ${step[$name]}; done
saved=base && [ "$DEVICE" = cuda ] || saved="demo --saves 2"
part checkpoint 30 $PYTHON benchmarks/bench_checkpoint.py --device $DEVICE --preset $saved
if [ "$DEVICE" = cuda ]; then # what the time may not suffice for
    part kernels 60 $PYTHON benchmarks/bench_kernels.py --device cuda --rows $((16 / PART_OF))
    part cuda_graphs 45 $(train demo 256 64 --only_ours --cuda_graphs)
    part no_cuda_graphs 45 $(train demo 256 64 --only_ours)
fi
[ $ran = 1 ] || { echo "no such part: $PARTS" >&2; exit 2; }
exit $failed
