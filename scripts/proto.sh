#!/usr/bin/env bash
# Generate prfaas/pb from proto/, or with --check compare what is committed with what would be generated.
# usage: scripts/proto.sh PYTHON [--check]
set -euo pipefail
python=$1
out=.
if [ "${2:-}" = --check ]; then out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; fi
"$python" -m grpc_tools.protoc -Iproto --python_out="$out" --grpc_python_out="$out" --pyi_out="$out" proto/prfaas/pb/*.proto
if [ "$out" != . ]; then
  for file in "$out"/prfaas/pb/*; do
    cmp -s "$file" "prfaas/pb/$(basename "$file")" || { echo "prfaas/pb/$(basename "$file") is stale: run make proto" >&2; exit 1; }
  done
  echo "generated stubs are fresh"
fi
