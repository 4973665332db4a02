# Other scripts source this file to read a flag of dpdmd.train from their own arguments.

given() { # flag, the value without it, further flags: prints the last value that these give
    local flag="$1" value="$2"
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in "$flag") value="${2:-}" ;; "$flag="*) value="${1#*=}" ;; esac
        shift
    done
    printf '%s' "${value/#\~\//$HOME/}" # the shell leaves a ~ after = alone
}
