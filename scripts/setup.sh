#!/usr/bin/env bash
# Make a virtual environment and install prfaas in it, pinned, with the CPU or a CUDA build of torch.
# usage: scripts/setup.sh PYTHON VENV TORCH_VERSION TORCH_INDEX   (TORCH_INDEX: "cpu", or the URL of a CUDA wheel index)
# Run again, it changes only what is missing or stale.
set -euo pipefail
python=$1 venv=$2 torch_version=$3 torch_index=$4
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '== %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The interpreter: the one that was asked for, or the newest other one that is new enough.
if ! new_enough "$python"; then
  for other in python3.13 python3.12 python3.11; do
    if new_enough "$other"; then python=$other; break; fi
  done
  new_enough "$python" || fail "Python 3.11 or newer is needed, and neither $1 nor python3.11 to 3.13 is one." \
    "On Debian or Ubuntu: sudo apt install python3 python3-venv, or set PYTHON: make setup PYTHON=/path/to/python3.11"
fi

# The environment. One that was moved or half made does not run, and is made anew.
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
  say "virtual environment in $venv ($("$python" -V))"
  rm -rf "$venv"
  if ! output=$("$python" -m venv "$venv" 2>&1); then
    rm -rf "$venv"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fail "$output" "" "On Debian or Ubuntu: sudo apt install python3-venv (or python$version-venv), then run this again."
  fi
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
quiet=(); [ -t 1 ] || quiet=(-q) # a terminal sees pip's progress bars, a log only what goes wrong

# torch first and by itself: left to the dependencies, pip would pick the CUDA build, gigabytes that a CPU cannot use.
has_torch() {
  "$venv/bin/python" - "$torch_version" "$torch_index" 2>/dev/null <<'PY'
import sys
import torch
version, index = sys.argv[1:]
right_build = index == "cpu" or torch.version.cuda is not None or torch.version.hip is not None
sys.exit(not (torch.__version__.split("+")[0] == version and right_build))
PY
}
if ! has_torch; then
  say "torch $torch_version ($torch_index)"
  if [ "$torch_index" != cpu ]; then
    "${pip[@]}" install "${quiet[@]}" --force-reinstall "torch==$torch_version" --index-url "$torch_index"
  else
    # The CPU build is called "+cpu" on Linux: from the configured indexes if they have it, else from PyTorch's own.
    "${pip[@]}" install "${quiet[@]}" "torch==$torch_version+cpu" 2>/dev/null ||
      "${pip[@]}" install "${quiet[@]}" "torch==$torch_version" --index-url "$cpu_index" ||
      fail "torch $torch_version could not be installed from $cpu_index (see above)." \
        "Behind a mirror, name its CPU index: make setup TORCH_INDEX=https://MIRROR/whl/cpu"
  fi
  "$venv/bin/python" -c 'import torch' || fail "torch was installed but cannot be imported (see above)."
fi

say "prfaas and its tools"
"${pip[@]}" install "${quiet[@]}" -e '.[engine,ray,plot,test,dev]'
say "ready: torch $("$venv/bin/python" -c 'import torch; print(torch.__version__)') in $venv"
