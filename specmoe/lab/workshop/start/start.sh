#!/bin/sh
# Starts the workshop: an environment of its own from the wheels beside this file, no network.
# Yours to change are the copies in ~/specmoe-workshop (or in $SPECMOE_WORKSHOP).
# sh start.sh --check: only sets up and says PASS or FAIL.
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
work=${SPECMOE_WORKSHOP:-$HOME/specmoe-workshop}

python=
for version in @PYTHONS@; do
  for name in "${PYTHON:-}" "python$version" python3; do
    [ -n "$name" ] || continue
    found=$("$name" -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2]); sys.exit(v[2] < @FIRST@.get(v[1], 0))' 2>/dev/null) || continue
    if [ "$found" = "$version" ]; then python=$name; break 2; fi
  done
done
if [ -z "$python" ]; then
  echo "This kit is for Python @SAID@, and none is here: install one, or name it: PYTHON=/path/to/python sh start.sh" >&2
  exit 1
fi

mkdir -p "$work"
if [ ! -e "$work/.ready" ]; then
  echo "Setting up $work with $python (a few minutes, once)"
  "$python" -m venv "$work/.venv"
  "$work/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$kit/wheels" "specmoe[notebooks]"
  touch "$work/.ready"
fi
# What is there already is somebody's work: only what is missing is copied.
for folder in notebooks tutorials; do
  (cd "$kit/$folder" && find . -type d) | while read -r name; do mkdir -p "$work/$folder/$name"; done
  (cd "$kit/$folder" && find . -type f) | while read -r name; do
    [ -e "$work/$folder/$name" ] || cp "$kit/$folder/$name" "$work/$folder/$name"
  done
done

export SPECMOE_NOTEBOOKS="$work/notebooks"
cd "$work"
if [ "${1:-}" = "--check" ]; then
  exec "$work/.venv/bin/python" -m specmoe doctor --workshop
fi
exec "$work/.venv/bin/python" -m jupyterlab --ServerApp.root_dir="$work" --LabApp.default_url=/lab/tree/notebooks
