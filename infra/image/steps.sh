#!/usr/bin/env bash
# What an image is made by, step by step: infra/image/steps.sh STEP [ARGUMENT]. The Dockerfile calls it, and so can anything
# that has an empty folder and a Python.
#
#   install PYTHON VENV   the environment, from constraints.txt, without tools that build
#   check VENV            what is installed runs: the command's help, and Ray's own
#   clean VENV            what is not needed to run
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

install() {
    TORCH_BACKEND=${TORCH_BACKEND:-} "$root/infra/install.sh" "$1" "$2" all
}

check() {
    "$1/bin/realcustom" --version
    "$1/bin/python" -c "import ray, torch, diffusers, boto3, fastapi"
}

clean() {
    find "$1" -name "__pycache__" -path "*/tests/*" -prune -exec rm -rf {} +
    "$1/bin/python" -m pip uninstall --quiet --yes uv || true # it came with pip's own environment
}

step=${1:-}
case $step in
install | check | clean) shift && "$step" "$@" ;;
*) echo "error: steps are install, check, clean; got '$step'" >&2 && exit 2 ;;
esac
