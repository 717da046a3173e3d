#!/usr/bin/env bash
# Everything that needs a GPU, on one clock: build, the tests of the kernels and the engine, the benchmark of a step,
# compute-sanitizer, the rest of the tests and of the benchmark. It takes longer than the clock goes, so it runs in two
# halves. The most important comes first. Each part has its own time limit, which shrinks to what is left of the clock,
# so that one that fails or hangs never hides the rest, and the record is written anew after each. Needs python3 with a
# CUDA build of torch, nvcc, ninja, pybind11, setuptools, pytest and hypothesis; no network. Reads the GPU's settings
# and never changes them.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/gpu.sh [--dry-run] [--half 1|2 | --part NAME]... [--limit SECONDS] [--clock SECONDS] [--commit ID]
                    [--out DIR] [--help]

  --dry-run        list the parts, their time limits and commands, and do nothing
  --half 1|2       the parts up to memcheck, or the build and those behind it; its record is gpu-<date>-half-1.json.
                   Without it all parts, as far as the clock goes
  --part NAME      that part alone, and what else is named so; its record is gpu-<date>-NAME.json
  --limit SECONDS  no part may take longer than this
  --clock SECONDS  of the whole run (default: 560); what is not begun by then is reported as left out
  --commit ID      of the sources (default: $FASTGAN_COMMIT, else what git says, else unknown)
  --out DIR        where everything goes: gpu-<date>.json, gpu-<date>.log, and in gpu-<date>/ what each part left
                   (default: bench/results)

PYTHON, CUDA_HOME, MAX_JOBS and TORCH_CUDA_ARCH_LIST are respected. Exit status: 0 all parts passed, 1 one did not, 2
nothing was run.
TEXT
}

names=() limits=() commands=() halves=()
half='1 2'
part() {
  names+=("$1") limits+=("$2") commands+=("$3") halves+=("$half")
}

# The first import of torch on a machine may take minutes: its libraries are read from disk.
part facts 180 '"$PYTHON" -m tools.gpu_record facts "$WORK/facts.json"'

part build 150 'export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c "
import torch
major, minor = torch.cuda.get_device_capability()
print(str(major) + chr(46) + str(minor) + chr(97) * (major >= 9))")}"
jobs="$(env -u OMP_NUM_THREADS nproc)" # which takes it for the number of cores
FASTGAN_BUILD=cuda MAX_JOBS="${MAX_JOBS:-$jobs}" "$PYTHON" setup.py --quiet build_ext --inplace'

half=1
part verify 60 '"$PYTHON" -m fastgan doctor --verify'

# What a GPU alone can show comes first. Packages that the tests want and do not find are named; the tests that need
# them are left out or skip.
readonly FIRST='tests/test_gpu.py tests/test_gpu_step.py tests/test_cuda_kernels.py tests/test_engine.py
tests/test_engine_between_steps.py tests/test_step.py tests/test_step_options.py tests/test_engine_adam.py
tests/test_mlp.py tests/test_logits_loss.py tests/test_bce.py'
# What came later, of the same kernels: penalties, D alone, other losses, segments.
readonly SECOND='tests/test_discriminator_step.py tests/test_segmented.py tests/test_segmented_engine.py
tests/test_segmented_step.py tests/test_segmented_refuses.py tests/test_step_cases.py tests/test_gan_losses.py
tests/test_composed.py tests/test_thin_layers.py'
tests='has() { "$PYTHON" -c "import sys, importlib.util as u; sys.exit(u.find_spec(sys.argv[1]) is None)" "$1"; }
for package in hypothesis expecttest xdist pytest_timeout tomlkit typer rich safetensors sklearn PIL matplotlib; do
  has "$package" || echo "note: $package is missing"
done
options=(-q -rf -p no:cacheprovider --continue-on-collection-errors --tb=short --maxfail=300 --durations=10)
# Two cores are left to the process that hands out the tests, and to the driver.
workers=$(($(env -u OMP_NUM_THREADS nproc) - 2))
if has xdist; then options+=(-n "$((workers > 14 ? 14 : workers < 1 ? 1 : workers))"); fi
if has pytest_timeout; then options+=(--timeout 60); fi
# Of the backends, that of the GPU: the others are the same anywhere.
export OMP_NUM_THREADS=1 FASTGAN_SKIP_SIMT=1 FASTGAN_REQUIRE_BACKENDS=cuda FASTGAN_TEST_BACKENDS=cuda FASTGAN_TESTS=full
# Interrupted before its time is over, pytest still says what failed. Background jobs of a script ignore SIGINT, which
# env undoes where it can.
in_time=(timeout -s INT -k 8 "$((LIMIT > 30 ? LIMIT - 12 : LIMIT))")
if env --default-signal=INT true 2>/dev/null; then in_time=(env --default-signal=INT "${in_time[@]}"); fi'

part kernels 150 "$tests"'
"${in_time[@]}" "$PYTHON" -m pytest '"${FIRST//$'\n'/ }"' "${options[@]}" --junitxml="$WORK/kernels.xml"'

part kernels-2 130 "$tests"'
"${in_time[@]}" "$PYTHON" -m pytest '"${SECOND//$'\n'/ }"' -m "not deep" "${options[@]}" \
  --junitxml="$WORK/kernels-2.xml"'

# Without the steps with penalties ("float32 step"), which have a part of their own, and without the other forms of
# PyTorch's step, of which the captured one is the fastest but for those of torch.compile (step-compiled).
part step 70 '"$PYTHON" -m bench --device cuda --only step --match "step " --rounds 7 --seconds 0.02 --budget 5 \
  --peers CUDA-graph-of-torch jax --json "$WORK/step.json"'

part profile 40 '"$PYTHON" -m tools.kernel_profile --json "$WORK/profile.json"'

# Modelled from counts of the host model (bench/results/modelled.json), beside what was measured just now.
part modelled 20 '"$PYTHON" -m tools.model --measured "$WORK/profile.json" | tee "$WORK/modelled.md"'

part choices 70 '"$PYTHON" -m tools.choices --device cuda --rounds 5 --seconds 0.01 --json "$WORK/choices.json"'

part step-tf32 60 '"$PYTHON" -m bench --device cuda --tf32 --only step --match "step " --rounds 7 --seconds 0.02 \
  --budget 5 --peers CUDA-graph-of-torch jax --json "$WORK/step-tf32.json"'

# Of fastgan's kernels only, whose mangled names hold the namespace; but for initcheck, which must see what PyTorch's
# kernels initialise. With PyTorch's caching of memory, which hands out parts of large blocks, an access out of bounds
# would be within a block. The tests are shared out among four processes, one for each path of a layer and one for the
# rest.
for tool in memcheck racecheck synccheck initcheck; do
  filter='--kernel-name kns=fastgan' limit=60
  if [ "$tool" = initcheck ]; then filter=''; fi
  if [ "$tool" = racecheck ]; then limit=120; fi
  part "$tool" "$limit" "tool=$tool filter='$filter'"'
sanitizer="$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")"
if ! [ -x "$sanitizer" ]; then echo "compute-sanitizer is not installed"; exit 77; fi
if ! [ -f tests/test_gpu.py ]; then echo "there is no tests/test_gpu.py"; exit 1; fi
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
processes=() worst=0
for paths in narrow tiled library "not narrow and not tiled and not library"; do
  output="$WORK/$tool.${#processes[@]}"
  "$sanitizer" --tool "$tool" $filter --error-exitcode 9 --target-processes all \
    "$PYTHON" -m pytest tests/test_gpu.py -q -k "sanitize and $paths" -p no:cacheprovider >"$output" 2>&1 &
  processes+=("$!")
done
for i in "${!processes[@]}"; do
  wait "${processes[i]}" || worst=$?
  cat "$WORK/$tool.$i"
done
exit "$worst"'
  half=2
done

part tests 150 "$tests"'
if ! has tomlkit; then
  for name in config trainer cli checkpoint examples; do options+=("--ignore=tests/test_$name.py"); done
fi
for file in '"${FIRST//$'\n'/ } ${SECOND//$'\n'/ }"'; do options+=("--ignore=$file"); done
"${in_time[@]}" "$PYTHON" -m pytest tests -m "not deep" "${options[@]}" --junitxml="$WORK/tests.xml"'

# What torch.compile takes to compile is most of this.
part step-compiled 100 '"$PYTHON" -m bench --device cuda --tf32 --only step --match "step " --rounds 5 --seconds 0.02 \
  --budget 4 --peers torch.compile CUDA-graph-of-torch.compile --json "$WORK/step-compiled.json"'

part penalties 80 '"$PYTHON" -m bench --device cuda --only step --match "float32 step" --rounds 5 --seconds 0.02 \
  --budget 4 --json "$WORK/penalties.json"'

part bench 90 '"$PYTHON" -m bench --device cuda --only bce logits_loss segmented linear mlp host penalties tutorial \
  --rounds 5 --seconds 0.01 --json "$WORK/bench.json"'

refuse() {
  echo "tools/gpu.sh: $1" >&2
  exit 2
}

dry_run=no only="" only_half="" cap="" out="" clock=560
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    --half | --part | --limit | --clock | --commit | --out)
      [ $# -ge 2 ] || refuse "$1 needs a value"
      case "$1" in
        --half) only_half="$2" ;;
        --part) only="${only:+$only }$2" ;;
        --limit) cap="$2" ;;
        --clock) clock="$2" ;;
        --commit) FASTGAN_COMMIT="$2" ;;
        --out) out="$2" ;;
      esac
      shift
      ;;
    *) refuse "unknown option '$1'; the options are $(usage | grep -o '^  --[a-z-]*' | xargs) and --help" ;;
  esac
  shift
done
for word in $only; do
  case " ${names[*]} " in
    *" $word "*) ;;
    *) refuse "--part must be one of ${names[*]}, not '$word'" ;;
  esac
done
case "$only_half" in
  "" | 1 | 2) ;;
  *) refuse "--half must be 1 or 2, not '$only_half'" ;;
esac
if [ -n "$only_half" ]; then
  [ -z "$only" ] || refuse "--half and --part do not go together: a half is a choice of parts"
  for i in "${!names[@]}"; do
    case "${halves[i]}" in *"$only_half"*) only="${only:+$only }${names[i]}" ;; esac
  done
fi
is_left_out() {
  [ -n "$only" ] && case " $only " in *" $1 "*) false ;; esac
}
case "$cap" in
  "") ;;
  *[!0-9]* | 0*) refuse "--limit must be whole seconds, at least 1, not '$cap'" ;;
  *) for i in "${!limits[@]}"; do limits[i]=$((limits[i] < cap ? limits[i] : cap)); done ;;
esac
case "$clock" in
  "" | *[!0-9]* | 0*) refuse "--clock must be whole seconds, at least 1, not '$clock'" ;;
esac

if [ "$dry_run" = yes ]; then
  total=0
  for i in "${!names[@]}"; do
    if is_left_out "${names[i]}"; then continue; fi
    total=$((total + limits[i]))
    printf '%s, at most %s s:\n' "${names[i]}" "${limits[i]}"
    printf '%s\n' "${commands[i]}" | sed 's/^/    /'
  done
  echo "$((total < clock ? total : clock)) s at most"
  exit 0
fi

if [ -n "$out" ]; then mkdir -p "$out" && out="$(cd "$out" && pwd)"; fi
cd "$(dirname "$0")/.."
end=$((SECONDS + clock))
out="${out:-$PWD/bench/results}"
mkdir -p "$out"
export PYTHON="${PYTHON:-python3}"
# Without a GPU nothing below can mean anything, and every part would say so in its own way.
if ! command -v nvidia-smi >/dev/null || ! timeout 30 nvidia-smi -L >/dev/null 2>&1; then
  refuse "there is no NVIDIA GPU here: nvidia-smi is missing or finds none"
fi
if ! timeout 180 "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  refuse "$PYTHON has no PyTorch that can use the GPU: torch.cuda.is_available() is not true"
fi

if [ -z "${FASTGAN_COMMIT:-}" ] && command -v git >/dev/null && described="$(git describe --always --dirty 2>/dev/null)"; then
  FASTGAN_COMMIT="$described"
fi
export FASTGAN_COMMIT="${FASTGAN_COMMIT:-unknown}"
export CUDA_HOME="${CUDA_HOME:-$(tools/cuda_home.sh || echo /usr/local/cuda)}"
# JAX would take three quarters of the GPU's memory at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
child=""
trap 'if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi; exit 130' INT TERM
suffix="${only_half:+half-$only_half}"
suffix="${suffix:-${only// /-}}"
name="gpu-$(date -u +%F)${suffix:+-$suffix}"
log="$out/$name.log"
WORK="$out/$name"
export WORK
rm -rf "$WORK"
mkdir -p "$WORK"
export XDG_CACHE_HOME="$WORK/cache" # what is found out about this GPU stays with the results
: >"$log"
: >"$WORK/parts.tsv"

worst=0
for i in "${!names[@]}"; do
  if is_left_out "${names[i]}"; then continue; fi
  # 5 s are what a part may take to end once it is told to.
  left=$((end - SECONDS - 5))
  if [ "$left" -lt 1 ]; then
    printf '%s\tleft out\t0\t0\t0\n' "${names[i]}" >>"$WORK/parts.tsv"
    timeout -k 5 20 "$PYTHON" -m tools.gpu_record assemble "$WORK" "$out/$name.json" || true
    worst=1
    continue
  fi
  if [ "$left" -lt "${limits[i]}" ]; then limits[i]=$left; fi
  echo "== ${names[i]} (at most ${limits[i]} s)" | tee -a "$log"
  start="$(date +%s.%N)"
  status=0
  export LIMIT="${limits[i]}"
  # Into a file, not a pipe: a process that outlived its part would hold the pipe open, and this script with it.
  timeout -k 5 "$LIMIT" bash -c "set -euo pipefail; ${commands[i]}" >"$WORK/output" 2>&1 </dev/null &
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
  tail -n 14 "$WORK/output"
  seconds="$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $start }")"
  printf '%s\t%s\t%s\t%s\t%s\n' "${names[i]}" "$word" "$status" "$seconds" "${limits[i]}" >>"$WORK/parts.tsv"
  timeout -k 5 20 "$PYTHON" -m tools.gpu_record assemble "$WORK" "$out/$name.json" || worst=1
done

{
  echo
  printf '%-10s %-10s %8s %8s\n' part result seconds limit
  awk -F'\t' '{ printf "%-10s %-10s %8s %8s\n", $1, $2 ($3 && $2 == "failed" ? " " $3 : ""), $4, $5 }' "$WORK/parts.tsv"
  echo "record: $out/$name.json, log: $log"
} | tee -a "$log"
exit $worst
