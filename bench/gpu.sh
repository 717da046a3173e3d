#!/usr/bin/env bash
# Everything that needs a GPU, in one run of under 9 minutes: build, tests, compute-sanitizer, benchmark. Each part has
# its own time limit, so that one that fails or hangs never hides the rest, and the record is written anew after each.
# Needs python3 with a CUDA build of torch, nvcc, ninja, pybind11, setuptools, pytest and hypothesis; no network. Reads
# the GPU's settings and never changes them.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu.sh [--dry-run] [--part NAME] [--limit SECONDS] [--commit ID] [--out DIR] [--help]

  --dry-run        list the parts, their time limits and commands, and do nothing
  --part NAME      that part alone; its record is gpu-<date>-NAME.json
  --limit SECONDS  no part may take longer than this
  --commit ID      of the sources, where git cannot tell (default: $FASTGAN_COMMIT, else unknown)
  --out DIR        where gpu-<date>.json and gpu-<date>.log go (default: bench/results)

PYTHON, CUDA_HOME, MAX_JOBS and TORCH_CUDA_ARCH_LIST are respected. Exit status: 0 all parts passed, 1 one did not, 2
nothing was run.
TEXT
}

names=() limits=() commands=()
part() {
  names+=("$1") limits+=("$2") commands+=("$3")
}

part facts 15 '"$PYTHON" -m bench.gpu_record facts "$WORK/facts.json"'

part build 130 'export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c "
import torch
major, minor = torch.cuda.get_device_capability()
print(str(major) + chr(46) + str(minor) + chr(97) * (major >= 9))")}"
FASTGAN_BUILD=cuda MAX_JOBS="${MAX_JOBS:-$(nproc)}" "$PYTHON" setup.py --quiet build_ext --inplace'

# Without tomlkit (the command line and the trainer need it) those tests cannot run, and the others can.
part tests 100 'options=()
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
if has xdist; then options+=(-n 8); fi
if has pytest_timeout; then options+=(--timeout 60); fi
if ! has tomlkit; then
  echo "note: tomlkit is missing, so the tests of the trainer and the command line are left out"
  for name in config trainer cli checkpoint examples; do options+=("--ignore=tests/test_$name.py"); done
fi
# The host model of the kernels has nothing to add where there is a GPU.
OMP_NUM_THREADS=2 FASTGAN_SKIP_SIMT=1 FASTGAN_REQUIRE_BACKENDS=cpu,cuda "$PYTHON" -m pytest tests -q --maxfail=20 -m "not slow" \
  -p no:cacheprovider --continue-on-collection-errors --junitxml="$WORK/tests.xml" "${options[@]}"'

# Of fastgan's kernels only, whose mangled names hold the namespace. With PyTorch's caching of memory, which hands out
# parts of large blocks, an access out of bounds would be within a block.
for tool in memcheck racecheck initcheck synccheck; do
  part "$tool" 45 "tool=$tool"'
sanitizer="$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")"
if ! [ -x "$sanitizer" ]; then echo "compute-sanitizer is not installed"; exit 77; fi
if ! [ -f tests/test_gpu.py ]; then echo "there is no tests/test_gpu.py"; exit 1; fi
PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --kernel-name kns=fastgan --error-exitcode 9 \
  --target-processes all "$PYTHON" -m pytest tests/test_gpu.py -q -k sanitize -p no:cacheprovider'
done

part bench 75 '"$PYTHON" -m bench --device cuda --rounds 7 --seconds 0.015 --json "$WORK/bench.json"'

refuse() {
  echo "bench/gpu.sh: $1" >&2
  exit 2
}

dry_run=no only="" cap="" out=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    --part | --limit | --commit | --out)
      [ $# -ge 2 ] || refuse "$1 needs a value"
      case "$1" in
        --part) only="$2" ;;
        --limit) cap="$2" ;;
        --commit) FASTGAN_COMMIT="$2" ;;
        --out) out="$2" ;;
      esac
      shift
      ;;
    *) refuse "unknown option '$1'; the options are --dry-run, --part, --limit, --commit, --out and --help" ;;
  esac
  shift
done
if [ -n "$only" ]; then
  case " ${names[*]} " in
    *" $only "*) ;;
    *) refuse "--part must be one of ${names[*]}, not '$only'" ;;
  esac
fi
case "$cap" in
  "") ;;
  *[!0-9]* | 0*) refuse "--limit must be whole seconds, at least 1, not '$cap'" ;;
  *) for i in "${!limits[@]}"; do limits[i]=$((limits[i] < cap ? limits[i] : cap)); done ;;
esac

if [ "$dry_run" = yes ]; then
  total=0
  for i in "${!names[@]}"; do
    if [ -n "$only" ] && [ "$only" != "${names[i]}" ]; then continue; fi
    total=$((total + limits[i]))
    printf '%s, at most %s s:\n' "${names[i]}" "${limits[i]}"
    printf '%s\n' "${commands[i]}" | sed 's/^/    /'
  done
  echo "$total s at most"
  exit 0
fi

if [ -n "$out" ]; then mkdir -p "$out" && out="$(cd "$out" && pwd)"; fi
cd "$(dirname "$0")/.."
out="${out:-$PWD/bench/results}"
mkdir -p "$out"
export PYTHON="${PYTHON:-python3}"
# Without a GPU nothing below can mean anything, and every part would say so in its own way.
if ! command -v nvidia-smi >/dev/null || ! timeout 30 nvidia-smi -L >/dev/null 2>&1; then
  refuse "there is no NVIDIA GPU here: nvidia-smi is missing or finds none"
fi
if ! timeout 60 "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  refuse "$PYTHON has no PyTorch that can use the GPU: torch.cuda.is_available() is not true"
fi

if command -v git >/dev/null && described="$(git describe --always --dirty 2>/dev/null)"; then
  FASTGAN_COMMIT="$described"
fi
export FASTGAN_COMMIT="${FASTGAN_COMMIT:-unknown}"
export CUDA_HOME="${CUDA_HOME:-$(bench/cuda_home.sh || echo /usr/local/cuda)}"
WORK="$(mktemp -d)"
export WORK
trap 'rm -rf "$WORK"' EXIT
child=""
trap 'if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi; exit 130' INT TERM
name="gpu-$(date -u +%F)${only:+-$only}"
log="$out/$name.log"
: >"$log"
: >"$WORK/parts.tsv"

worst=0
for i in "${!names[@]}"; do
  if [ -n "$only" ] && [ "$only" != "${names[i]}" ]; then continue; fi
  echo "== ${names[i]} (at most ${limits[i]} s)" | tee -a "$log"
  start="$(date +%s.%N)"
  status=0
  # Into a file, not a pipe: a process that outlived its part would hold the pipe open, and this script with it.
  timeout -k 5 "${limits[i]}" bash -c "set -euo pipefail; ${commands[i]}" >"$WORK/output" 2>&1 </dev/null &
  child=$!
  wait "$child" || status=$?
  child=""
  case $status in
    0) word=ok ;;
    77) word=missing ;;
    124 | 137) word='timed out' ;;
    *) word=failed ;;
  esac
  if [ "$word" != ok ] && [ "$word" != missing ]; then worst=1; fi
  cat "$WORK/output" >>"$log"
  tail -n 12 "$WORK/output"
  seconds="$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $start }")"
  printf '%s\t%s\t%s\t%s\t%s\n' "${names[i]}" "$word" "$status" "$seconds" "${limits[i]}" >>"$WORK/parts.tsv"
  timeout -k 5 20 "$PYTHON" -m bench.gpu_record assemble "$WORK" "$out/$name.json" || worst=1
done

{
  echo
  printf '%-10s %-10s %8s %8s\n' part result seconds limit
  awk -F'\t' '{ printf "%-10s %-10s %8s %8s\n", $1, $2 ($3 && $2 == "failed" ? " " $3 : ""), $4, $5 }' "$WORK/parts.tsv"
  echo "record: $out/$name.json, log: $log"
} | tee -a "$log"
exit $worst
