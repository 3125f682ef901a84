# What the scripts beside this one have in common; they source it. shellcheck shell=bash

say() { printf '\n== %s, after %s s\n' "$*" "$SECONDS"; }

# with_tools COMMAND PACKAGE...: whether there is such a command, if need be from Debian's packages, which root
# may install. Where there is none, it is said aloud: what needs it is then not tested.
with_tools() {
  local command=$1
  shift
  if ! command -v "$command" >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >/dev/null 2>&1 || true
  fi
  command -v "$command" >/dev/null && return
  printf 'NOT TESTED: there is no %s here (%s)\n' "$command" "$*"
  return 1
}

# finds PATTERN COMMAND...: the control of a tool. Its command has a planted fault, must fail and must say so.
finds() {
  local pattern=$1 output
  shift
  if output=$("$@" 2>&1) || ! grep -qE "$pattern" <<<"$output"; then
    printf '%s\nThe planted fault was not found: no "%s" from %s\n' "$output" "$pattern" "$*"
    return 1
  fi
}
