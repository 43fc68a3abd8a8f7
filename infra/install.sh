#!/usr/bin/env bash
# Make or update the environment of this repository: infra/install.sh PYTHON VENV [EXTRA]
#
# Held to constraints.txt. uv does the work, pip where uv cannot be had. TORCH_BACKEND (cpu, cu128, auto ...) chooses
# uv's torch build. A stamp in the environment makes a second call return at once until what it rests on changes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
venv=$2
extra=${3:-}
backend=${TORCH_BACKEND:-}

fail() {
    echo "error: $*" >&2
    exit 2
}

command -v "$python" >/dev/null || fail "no '$python' on this machine; install Python 3.11 to 3.14, or name one: make PYTHON=python3.12 ..."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || # what torch and Ray are built for
    fail "Python 3.11 to 3.14 is needed, '$python' is $("$python" -V 2>&1); name another: make PYTHON=python3.12 ..."

key=$("$python" -c 'import hashlib, pathlib, sys
files = b"".join(pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "infra/install.sh"))
print(hashlib.sha256(files + sys.argv[1].encode()).hexdigest())' "$backend@$PWD")
stamp="$venv/.installed"
if [[ -f $stamp && -x $venv/bin/python ]]; then
    installed=$(<"$stamp")
    # an environment with the development tools serves the plain run too
    [[ $installed == "$key $extra" || $installed == "$key dev" ]] && exit 0
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # none yet, or one that was interrupted
    [[ ! -e $venv || -f $venv/pyvenv.cfg || -z $(ls -A "$venv") ]] ||
        fail "$venv holds something that is no environment; name another folder: make VENV=.venv-realcustom ..."
    echo "making the environment $venv"
    "$python" -m venv --clear "$venv" || fail "'$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"
fi
rm -f "$stamp"

pip_setting() { # what pip would use: its environment variable or its configuration files; empty where there is none
    "$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true
}

# uv does not read pip's settings; hand over those that name a place which exists.
take_pip_settings() {
    local links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
    local extra_indexes=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
    local index=${PIP_INDEX_URL:-$(pip_setting index-url)}
    local certificates=${PIP_CERT:-$(pip_setting cert)}
    # shellcheck disable=SC2086 # several, with spaces between them
    links=$(existing $links)
    # shellcheck disable=SC2086
    extra_indexes=$(existing $extra_indexes)
    if [[ -n $links && -z ${UV_FIND_LINKS:-} ]]; then export UV_FIND_LINKS=${links// /,}; fi
    if [[ -n $index && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=$index; fi
    if [[ -n $extra_indexes && -z ${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-} ]]; then
        export UV_EXTRA_INDEX_URL=$extra_indexes
        export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # all indexes are looked at, as pip does
    fi
    if [[ -f $certificates && -z ${SSL_CERT_FILE:-} ]]; then export SSL_CERT_FILE=$certificates; fi
}

existing() { # those of the given folders and addresses that are there; remote ones are taken at their word
    local place kept=()
    for place in "$@"; do
        case $place in
        http://* | https://*) kept+=("$place") ;;
        *) if [[ -e ${place#file://} ]]; then kept+=("$place"); fi ;;
        esac
    done
    echo ${kept[@]+"${kept[@]}"}
}

package="."
if [[ -n $extra ]]; then package=".[$extra]"; fi
echo "installing realcustom and what it needs into $venv (minutes the first time)"
if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; then
    take_pip_settings
    options=(--compile-bytecode) # as pip does: else every Ray worker of the first run compiles what it imports
    if [[ -n $backend ]]; then options+=("--torch-backend=$backend"); fi
    "$venv/bin/uv" pip install --python "$venv/bin/python" -c constraints.txt "${options[@]}" -e "$package" ||
        fail "the packages could not be installed${backend:+; TORCH_BACKEND=$backend takes torch from the index of PyTorch: leave it unset to take all from yours}"
else
    [[ -z $backend ]] || fail "TORCH_BACKEND=$backend needs uv, which could not be installed; leave it unset to install with pip"
    echo "uv could not be installed; going on with pip"
    "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt -e "$package"
fi
echo "$key $extra" >"$stamp"
