#!/usr/bin/env bash
# Make a virtual environment and install prfaas in it, pinned, with the CPU or a CUDA build of torch.
# usage: scripts/setup.sh PYTHON VENV TORCH_VERSION TORCH_INDEX   (TORCH_INDEX: "cpu", or the URL of a CUDA wheel index)
set -euo pipefail
python=$1 venv=$2 torch_version=$3 torch_index=$4
"$python" - <<'PY' || { echo "prfaas needs Python 3.11 or newer; set PYTHON=python3.11, for example" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
echo "== torch $torch_version ($torch_index)"
if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch_version')" 2>/dev/null; then
  if [ "$torch_index" != cpu ]; then
    "${pip[@]}" install "torch==$torch_version" --index-url "$torch_index"
  else
    # The CPU build carries the local version "+cpu": from the configured indexes if they have it, else from PyTorch's own.
    "${pip[@]}" install "torch==$torch_version+cpu" 2>/dev/null ||
      "${pip[@]}" install "torch==$torch_version" --index-url https://download.pytorch.org/whl/cpu
  fi
fi
echo "== prfaas and its tools"
"${pip[@]}" install -q -e '.[engine,ray,test,dev]'
"$venv/bin/python" -c "import torch; print('ready: torch', torch.__version__)"
