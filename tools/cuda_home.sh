#!/usr/bin/env bash
# Prints the CUDA toolkit's folder as nvcc itself names it: what is on PATH may be a link to it or a script that calls
# it, and PyTorch would then look for the headers beside that.
set -euo pipefail

if ! command -v nvcc >/dev/null; then
  echo "nvcc is not on PATH; add the CUDA toolkit's bin folder, or set CUDA_HOME" >&2
  exit 2
fi
# A dry run reads no file.
top="$(nvcc -v --dryrun x.cu 2>&1 | sed -n 's/^#\$ TOP=//p' || true)"
if [ -z "$top" ]; then
  top="$(dirname "$(readlink -f "$(command -v nvcc)")")/.."
fi
realpath -m "$top"
