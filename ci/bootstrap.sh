#!/usr/bin/env bash
# Makes .venv from nothing but Python >= 3.11 with pip: pinned packages (hashes checked), then vinb itself, editable.
# uv installs when it can be had, since it is several times faster; pip does otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

command -v "$python" >/dev/null || { echo "make: '$python' was not found; pass PYTHON=/path/to/python3.11 or newer" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "make: vinb needs Python 3.11 or newer, $("$python" --version) was found; pass PYTHON=..." >&2; exit 1; }

# An environment made by another Python, or left half-made, is made anew.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv
  "$python" -m venv .venv ||
    { rm -rf .venv; echo "make: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 VIRTUAL_ENV="$PWD/.venv"
echo "setting up .venv with the pinned packages of ci/requirements.txt ..."
if [ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet "uv>=0.5" 2>/dev/null; then
  if .venv/bin/uv pip install --quiet --compile-bytecode --require-hashes -r ci/requirements.txt; then installed=yes; fi
fi
if [ -z "${installed:-}" ]; then
  .venv/bin/python -m pip install --quiet --require-hashes -r ci/requirements.txt
fi
# hatchling and editables are among the pinned packages, so nothing more is fetched here.
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
