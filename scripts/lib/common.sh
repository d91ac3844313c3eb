# Shared by the scripts; sourced, not run.

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# need_packages PROGRAM:PACKAGE... - installs the Debian packages of those programs that are missing.
# A program that begins with "python3-" is a Python module, with "/" a file.
need_packages() {
    local pair program package missing=() sudo=()
    for pair in "$@"; do
        program=${pair%%:*} package=${pair#*:}
        has "$program" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local list
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    list="${missing[*]}"
    command -v apt-get >/dev/null || die "needs these Debian packages, and there is no apt-get here: $list"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "needs these Debian packages; run as root: apt-get install $list"
        # Without a terminal nobody can type a password.
        if [ -t 0 ]; then sudo=(sudo); else sudo=(sudo -n); fi
        "${sudo[@]}" true 2>/dev/null || die "needs these Debian packages; run: sudo apt-get install $list"
    fi
    say "installing Debian packages: $list"
    local log
    log=$(mktemp)
    if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" \
        </dev/null >"$log" 2>&1; then
        # A fresh machine has no lists of packages yet.
        "${sudo[@]}" apt-get update </dev/null >>"$log" 2>&1 || true
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            "${missing[@]}" </dev/null >>"$log" 2>&1 ||
            { tail -20 "$log" >&2; die "could not install: $list"; }
    fi
    rm -f "$log"
}

has() {
    case $1 in
    /*) [ -e "$1" ] ;;
    # Debian's Python, which Debian's modules are for; isolated, for there is a folder nbd/ here.
    python3-*) /usr/bin/python3 -I -c "import ${1#python3-} as module; assert module.__file__" 2>/dev/null ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}
