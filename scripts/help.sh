# Sourced by the other scripts with their "$@", first of all: -h or --help prints the comment at the top of the script
# and ends it. It needs neither weights nor an environment.
for argument in "$@"; do
    case $argument in -h | --help)
        sed -n '2,${/^#\( \|$\)/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[1]}"
        case ${BASH_SOURCE[1]} in *train*) echo "Flags of dpdmd.train: python -m dpdmd.train --help" ;; esac
        exit ;;
    esac
done
