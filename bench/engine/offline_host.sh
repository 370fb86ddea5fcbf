#!/usr/bin/env bash
# Measures and tests the local engine on an offline GPU host: one that has Python, PyTorch for its GPU and
# transformers, but no network. What it lacks was carried into a folder, as wheels and as pieces of them.
#
#   bench/engine/offline_host.sh PIECES STAGE=SECONDS…          in the repository
#
# PIECES holds *.whl, X.part00 X.part01 … (pieces of a file X), and weights.gguf, whole or in pieces.
# Stages, in the order given, each ended after so many seconds; one that fails does not stop the next:
#   install     joins the pieces and installs every wheel into $WORK/site
#   model       converts the weights, and writes an 8B shape without weights
#   bench-135m  the small model, all paths taking turns       bench-8b  the 8B shape, without AsyncLLM
#   test        tests/gpu
# Results go to $OUT as they come. A second run of install or model finds its work done.
# Environment: WORK (/tmp/offline-host), OUT ($WORK/out), PYTHON (python3), COMMIT (for the record),
# BENCH_135M, BENCH_8B (further options of `python -m bench.engine run`).
set -uo pipefail
if (($# < 2)); then sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2; fi
cd "$(dirname "$0")/../.."
pieces=$1; shift
work=${WORK:-/tmp/offline-host}; site=$work/site; out=${OUT:-$work/out}
python=${PYTHON:-python3}; commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null)}
small=$work/smollm2-135m-instruct; large=$work/llama-8b-shape
mkdir -p "$work" "$out"
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1
# Its kernels are compiled for the GPU on first use, which takes a compiler and a network.
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}
# What one engine has compiled the next ones find.
export VLLM_CACHE_ROOT=$work/cache/vllm TRITON_CACHE_DIR=$work/cache/triton
export TORCHINDUCTOR_CACHE_DIR=$work/cache/inductor

say() { echo "[$(date +%T)] $*"; }

join() { # FOLDER: every X of X.part00 X.part01 … in PIECES, and what is whole
  mkdir -p "$1"
  local first name
  for first in "$pieces"/*.part00; do
    [ -e "$first" ] || continue
    name=$(basename "${first%.part00}")
    [ -e "$1/$name" ] || { cat "${first%00}"?? > "$1/$name.joining" && mv "$1/$name.joining" "$1/$name"; }
  done
  for first in "$pieces"/*.whl "$pieces"/*.gguf; do
    [ ! -e "$first" ] || ln -sfn "$(realpath "$first")" "$1/$(basename "$first")"
  done
}

stage_install() {
  join "$work/whole" || return 1
  local list; list=$(ls "$work/whole" | grep '\.whl$')
  if [ -e "$work/installed" ] && [ "$list" == "$(cat "$work/installed")" ]; then echo "installed already"; else
    # All at once: packages that share a namespace would replace one another.
    rm -rf "$site"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" \
        ${PIP_OPTIONS:-} "$work"/whole/*.whl || return 1
    echo "$list" > "$work/installed"
  fi
  "$python" -c 'import grpc, torch, uvloop, vllm
print("Python packages: vllm", vllm.__version__, "torch", torch.__version__, "grpcio", grpc.__version__)
print("GPU:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")'
}

stage_model() {
  join "$work/whole" || return 1
  "$python" tools/fetch_model.py --gguf "$work/whole/weights.gguf" --out "$small" || return 1
  "$python" -m bench.engine.shape "$small" "$large" || return 1
  # Where the tests look for it.
  [ -e .models/smollm2-135m-instruct ] || { mkdir -p .models && ln -sfn "$small" .models/smollm2-135m-instruct; }
}

# A run ends itself in time for what it has to be written.
stage_bench-135m() {
  "$python" -m bench.engine run --model "$small" --name engine-h200 --out "$out" --commit "$commit" \
      --rounds 3 --order alternate --budget $(($1 - 60)) \
      --together --vllm-args '{"kv_cache_memory_bytes": 8000000000}' ${BENCH_135M:-}
}

stage_bench-8b() {
  "$python" -m bench.engine run --model "$large" --load-format dummy --name engine-h200-8b --out "$out" \
      --commit "$commit" --paths offline serve session router --streams 1 256 512 --rounds 3 \
      --order alternate --budget $(($1 - 60)) \
      --together --vllm-args '{"kv_cache_memory_bytes": 23000000000}' ${BENCH_8B:-}
}

stage_test() { "$python" -m pytest tests/gpu -q -rA -p no:cacheprovider --timeout "$1" ${TESTS:-}; }

logs() { # the ends of the processes' logs of runs that failed
  local log
  for log in .build/bench/engine-*/*.log .build/bench/engine-*/*/*.log; do
    [ ! -s "$log" ] || { echo "== $log"; tail -c 6000 "$log"; echo; }
  done > "$out/processes.log.txt"
}

run_stage() { # NAME SECONDS
  # In a group of its own, so that what it has started ends with it.
  setsid bash -c 'source "$0" && "stage_$1" "$2"' "$work/stages.sh" "$1" "$2" &
  local group=$! waited=0
  while kill -0 "$group" 2>/dev/null; do
    sleep 1; waited=$((waited + 1))
    if ((waited == $2)); then say "$1: its time is over"; kill -TERM -- "-$group"; fi
    if ((waited == $2 + 25)); then kill -KILL -- "-$group"; fi
  done 2>/dev/null
  wait "$group"
}

{ declare -p pieces work site out python commit small large; declare -f; } > "$work/stages.sh"
failed=0
for stage in "$@"; do
  name=${stage%%=*} seconds=${stage#*=}
  [ "$(type -t "stage_$name")" == function ] && [[ "$seconds" =~ ^[0-9]+$ ]] || { say "no such stage: $stage"; exit 2; }
  say "$name: at most $seconds s"
  began=$SECONDS
  run_stage "$name" "$seconds" > >(tee -a "$out/$name.log.txt") 2>&1
  status=$?
  say "$name: status $status after $((SECONDS - began)) s"
  ((status == 0)) || failed=1
  logs
done
exit $failed
