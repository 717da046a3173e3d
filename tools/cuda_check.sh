#!/usr/bin/env bash
# Builds and installs fastgan with CUDA into the environment of $PYTHON, from a copy of the sources without anything
# built, says how many seconds that took, and checks what was installed. Needs nvcc and a CUDA build of PyTorch, no GPU.
#   CUDA_CHECK_LIMIT      seconds that the build may take (default: any)
#   TORCH_CUDA_ARCH_LIST  architectures (default: 9.0a)
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(command -v "${PYTHON:-python3}")"
case "$python" in */*) python="$(cd "$(dirname "$python")" && pwd)/$(basename "$python")" ;; esac

limit="${CUDA_CHECK_LIMIT:-}"
case "$limit" in
  *[!0-9]* | 0*) echo "CUDA_CHECK_LIMIT must be whole seconds, at least 1, not '$limit'" >&2; exit 2 ;;
esac
export CUDA_HOME="${CUDA_HOME:-$(tools/cuda_home.sh)}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/sources" "$work/elsewhere"
cp -r csrc fastgan bench setup.py pyproject.toml README.md LICENSE MANIFEST.in "$work/sources"
rm -f "$work"/sources/fastgan/*.so "$work/sources/fastgan/_build_facts.json"

start="$(date +%s)"
(
  cd "$work/sources"
  FASTGAN_BUILD=cuda TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0a}" \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
)
seconds=$(($(date +%s) - start))
echo "built and installed with CUDA in $seconds s"

check="$PWD/tools/cuda_check.py"
# A script's own folder is first on sys.path: tools/ holds no fastgan.
(cd "$work/elsewhere" && "$python" "$check")
if [ -n "$limit" ] && [ "$seconds" -gt "$limit" ]; then
  echo "the CUDA build took $seconds s, more than CUDA_CHECK_LIMIT=$limit" >&2
  exit 1
fi
