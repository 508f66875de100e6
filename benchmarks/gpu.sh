#!/usr/bin/env bash
# Every check and measurement that needs a GPU, one part after the other: what ran, how fast, with what result.
# Each part leaves its log, and its rows as JSON, in OUT. One that fails, or takes over ten minutes, stops no other.
#
#   bash benchmarks/gpu.sh OUT [key=value ...]        overrides for all measurements of the throughput
#
# The table of quality needs MNIST and hours: benchmarks/quality.py.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT [key=value ...]}
overrides=("${@:2}")
python=${PYTHON:-python}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # also where nothing is installed

part() {
    local name=$1
    shift
    echo "== $name: $*"
    timeout 600 "$@" >"$out/$name.log" 2>&1 || echo "   exit code $?"
    tail -n 20 "$out/$name.log"
}

# throughput NAME OPTIONS... -- OVERRIDES...
throughput() {
    local name=$1 options=()
    shift
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    part "$name" "$python" benchmarks/throughput.py "${options[@]}" --out "$out/$name.json" \
        engine.precision=bf16 "$@" "${overrides[@]}"
}

part tests "$python" -m pytest -m gpu
part attention "$python" benchmarks/attention.py --graph --out "$out/attention.json"

# Which of graphs, compiled parts and the kernel pay, where launches decide (Case 1) and where products do (faces).
fast=(--modes query_only --engines accelerate)
for how in "false false sdpa" "true false sdpa" "true false triton" "true true sdpa" "true true triton"; do
    read -r graphs compile attention <<<"$how"
    keys=(engine.cuda_graphs="$graphs" engine.compile="$compile" engine.attention="$attention")
    name=graphs-$graphs-compile-$compile-$attention
    throughput "case1-$name" --cases 1 "${fast[@]}" -- "${keys[@]}"
    throughput "celeba-$name" --cases celeba_base "${fast[@]}" -- "${keys[@]}"
done
for batch_size in 512 1024 2048 4096 8192; do
    throughput "case1-batch-$batch_size" --cases 1 "${fast[@]}" -- \
        engine.cuda_graphs=true engine.compile=true engine.attention=triton train.batch_size="$batch_size"
done

# The whole table, with both engines, as it is by default.
for case in 1 2 3 4 celeba_base; do
    throughput "case-$case" --cases "$case" --fractions --
done
