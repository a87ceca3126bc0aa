#!/usr/bin/env bash
# Installs what the project needs, and does nothing where it is installed already.
#   run      .venv with the pinned packages and the project
#   dev      the same with the tools and libraries of the tests
#   servers  what the tests use beside Python: MariaDB and nftables from the system's packages, JavaScript clients from npm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root, without ever asking for a password; fails where that is not allowed.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 1; fi
}

apt_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  local log; log=$(mktemp)
  local options=(-y -q --no-install-recommends)
  if as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >"$log" 2>&1 ||
    { as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >"$log" 2>&1 &&
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >>"$log" 2>&1; }; then
    rm -f "$log"
  else
    tail -n 5 "$log" >&2; rm -f "$log"; return 1
  fi
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
    if command -v "$candidate" >/dev/null 2>&1 && is_recent "$candidate"; then printf '%s' "$candidate"; return; fi
  done
  die "Python 3.11 or newer is needed and was not found; name one with PYTHON=/path/to/python3.11"
}

# Debian's python3 comes without ensurepip: then a virtual environment has no pip, and one of these helps out.
make_venv() {
  local python=$1
  say "making .venv with $("$python" --version)"
  if "$python" -m venv .venv >/dev/null 2>&1; then return; fi
  rm -rf .venv
  if command -v uv >/dev/null 2>&1 && uv venv -q --seed -p "$python" .venv; then return; fi
  local version; version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  say "this Python cannot make virtual environments: installing the system's package $version"
  if apt_install "$version" && "$python" -m venv .venv; then return; fi
  rm -rf .venv
  die "$python cannot make a virtual environment (its module ensurepip is missing); install it, on Debian: apt-get install $version"
}

install_packages() {
  local lock=$1 stamp=".venv/.installed-$2" wanted
  if [ -e .venv/bin/python ] && ! is_recent .venv/bin/python; then rm -rf .venv; fi
  [ -e .venv/bin/python ] || make_venv "$(find_python)"
  wanted=$({ pwd; .venv/bin/python --version; cat "$lock" pyproject.toml; } | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  # What the tests need includes what the platform needs.
  if [ "$2" = run ] && [ "$(cat .venv/.installed-dev-run 2>/dev/null)" = "$wanted" ]; then return; fi
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip -q >/dev/null 2>&1 ||
    die ".venv has no pip; remove the folder .venv and try again"
  say "installing the packages of $lock (once; a few minutes on a cold machine)"
  pip_install -r "$lock"
  pip_install --no-deps -e .
  printf '%s\n' "$wanted" >"$stamp"
  if [ "$2" = dev ]; then
    { pwd; .venv/bin/python --version; cat requirements.txt pyproject.toml; } | sha256sum >.venv/.installed-dev-run
  fi
}

pip_install() {
  PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 \
    .venv/bin/python -m pip install "$@" | { grep --line-buffered -oE '^(Collecting [^ ]+|Installing collected|Successfully installed)' || true; } |
    sed -u -e 's/^Collecting /  /' -e 's/^Installing collected/  unpacking/' -e 's/^Successfully installed/  done/'
}

install_mariadb() {
  PATH=$PATH:/usr/sbin
  if command -v mariadbd >/dev/null 2>&1 && command -v mariadb-install-db >/dev/null 2>&1; then return; fi
  say "installing MariaDB from the system's packages, for the tests (its programs only: no service is started)"
  # mariadb-server-core brings the programs without the service that mariadb-server would start.
  apt_install mariadb-server-core mariadb-client-core ||
    say "MariaDB could not be installed (no root, or no such package): its tests will be skipped"
}

install_nftables() {
  PATH=$PATH:/usr/sbin
  if command -v nft >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then return; fi
  say "installing nftables from the system's packages, for the tests that cut networks (in namespaces of their own)"
  apt_install nftables || say "nftables could not be installed: the tests that cut networks will be skipped"
}

install_clients() {
  local folder=tests/gateway_clients
  [ -f "$folder/package-lock.json" ] || return 0
  if ! command -v npm >/dev/null 2>&1; then say "npm is missing: the tests of the JavaScript client will be skipped"; return 0; fi
  local wanted; wanted=$(sha256sum <"$folder/package-lock.json")
  if [ "$(cat "$folder/node_modules/.installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  say "installing the JavaScript clients"
  (cd "$folder" && npm ci --silent --no-audit --no-fund) || { say "npm failed: the tests of the JavaScript client will be skipped"; return 0; }
  printf '%s\n' "$wanted" >"$folder/node_modules/.installed"
}

case ${1:-} in
  run) install_packages requirements.txt run ;;
  dev) install_packages requirements-dev.txt dev ;;
  servers) install_mariadb; install_nftables; install_clients ;;
  *) die "usage: deploy/install.sh run|dev|servers" ;;
esac
