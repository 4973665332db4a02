# Other scripts source this file first, with their arguments: on -h or --help it prints the comment at the top of the
# script and ends the script. This needs neither weights nor an environment.
unset CDPATH # with it, cd prints or goes elsewhere
for argument in "$@"; do
    case $argument in -h | --help)
        sed -n '2,${/^#\( \|$\)/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[1]}"
        case ${BASH_SOURCE[1]} in *train*) echo "Flags of dpdmd.train: python -m dpdmd.train --help" ;; esac
        exit ;;
    esac
done
