# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for lodge; made by `lodge help --bash-completion`

_lodge_run() {
    case $previous in
    --disk) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --kernel) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --initrd) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --engine) mapfile -t COMPREPLY < <(compgen -W 'auto kvm soft' -- "$current") ;;
    --net) mapfile -t COMPREPLY < <(compgen -W 'user none' -- "$current") ;;
    --console) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --qmp) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    --perf-map) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    *)
        case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W '--disk --memory --vcpus --kernel --initrd --cmdline --engine --cpu --net --mac --console --qmp --perf-map --gdb --paused --name --uuid --test-devices --dry-run --verbose --help' -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        esac ;;
    esac
}

_lodge_image() {
    case $previous in
    *)
        case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W '--help' -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        esac ;;
    esac
}

_lodge_help() {
    case $previous in
    *)
        case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W '--bash-completion --help' -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        esac ;;
    esac
}

_lodge() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W 'run image help --help --version' -- "$current")
    elif declare -F "_lodge_${COMP_WORDS[1]}" >/dev/null; then
        "_lodge_${COMP_WORDS[1]}"
    fi
}
complete -o filenames -F _lodge lodge
