#!/usr/bin/env bash
# Every test, with the options of pytest that are given: first, alone, what takes time or has the machine to itself; then the
# rest, two at a time. Ends with the worst exit code of the two; with pytest's 5 if neither found a test.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

alone=(tests/chaos tests/cluster tests/simulation tests/contract)
worst=0 found=0

part() {
  .venv/bin/python -m pytest "$@"
  local code=$?
  case $code in
    0) found=1 ;;
    5) ;;
    *) found=1 worst=$code ;;
  esac
}

part "${alone[@]}" "$@"
part -n 2 tests "${alone[@]/#/--ignore=}" "$@"
[ $found = 1 ] || worst=5
exit $worst
