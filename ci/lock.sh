#!/usr/bin/env bash
# Rewrites ci/requirements.txt from pyproject.toml: one set of versions with hashes that serves Python 3.11 to 3.13, and no index URL.
# Needs uv, which `make` puts into .venv. Pass --upgrade to take newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
[ -x "$uv" ] || uv=uv
"$uv" pip compile pyproject.toml ci/build-requirements.in --extra test --extra book --extra cluster --universal --python-version 3.11 --fork-strategy fewest \
  --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "ci/lock.sh" --quiet --output-file ci/requirements.txt "$@"
