#!/usr/bin/env bash
# Every test, with the options of pytest that are given: first, alone, what takes time or has the machine to itself; then the
# rest, two at a time, those whose files share servers by the file. Ends with the worst exit code of the parts; with pytest's 5
# if none found a test.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

alone=(tests/chaos tests/cluster tests/simulation)
by_file=(tests/contract)
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
part -n 2 --dist loadfile "${by_file[@]}" "$@"
part -n 2 tests "${alone[@]/#/--ignore=}" "${by_file[@]/#/--ignore=}" "$@"
[ $found = 1 ] || worst=5
exit $worst
