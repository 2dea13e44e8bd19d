# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for lodge-img; made from its tables by the test image-cli

_lodge_img_words() {
    case $1 in
    amend) echo '-h --help --object --image-opts -p -q -f -t --force -o ' ;;
    backup) echo '-h --help --object --image-opts -f -T --output -q -p -U --force-share --bitmap --parent --chunk-size --list --delete --prune --overlay -b -F ' ;;
    bench) echo '-h --help --image-opts -U --force-share -q -f -t -c -d -n -i -o -s -S -w --pattern --flush-interval --no-drain ' ;;
    bitmap) echo '-h --help --merge --add --remove --clear --enable --disable -b --source-file -F --source-format -g --granularity --object --image-opts -f ' ;;
    check) echo '-h --help --object --image-opts -q -f --format --output -r --repair --explain --dry-run -T -U --force-share ' ;;
    commit) echo '-h --help --object --image-opts -q -f -t -b -r -d -p ' ;;
    compare) echo '-h --help --object --image-opts -f -F -T -p -q -s -U --force-share ' ;;
    convert) echo '-h --help --object --image-opts --target-image-opts -U --force-share -C -c -p -q -n --target-is-zero --bitmaps --skip-broken-bitmaps -f -t -T -O -B -F -o -l -S -r -m -W --salvage ' ;;
    create) echo '-h --help --object -q -f -b -F -u -o ' ;;
    dd) echo '-h --help --object --image-opts -U --force-share -f -O ' ;;
    info) echo '-h --help --object --image-opts -f --format --output --backing-chain -U --force-share ' ;;
    io) echo '-h --help --object --image-opts -c --cmd -f --format -r --read-only -s --snapshot -n --nocache -C --copy-on-read -m --misalign -k --native-aio -i --aio -t --cache -d --discard -U --force-share ' ;;
    map) echo '-h --help --object --image-opts -f --format -s --start-offset -l --max-length --output -U --force-share ' ;;
    measure) echo '-h --help --output -O -o --size --object --image-opts -f -l -U --force-share ' ;;
    mount) echo '-h --help --object --image-opts -f -r --read-only -x --export-name --growable --allow-other --cache --fork --pid-file ' ;;
    snapshot) echo '-h --help --object --image-opts -U --force-share -q -l -a -c -d ' ;;
    rebase) echo '-h --help --object --image-opts -U --force-share -q -f -t -T -p -u -c --compress -b -F ' ;;
    resize) echo '-h --help --object --image-opts -f --preallocation -q --shrink ' ;;
    restore) echo '-h --help --object -t -q -p -O -o -n ' ;;
    serve) echo '-h --help --object --image-opts -f --format -k --socket -b --bind -p --port -x --export-name -D --description -e --shared -t --persistent -r --read-only -s --snapshot -l --load-snapshot -A --allocation-depth -B --bitmap -o --offset -n --nocache -v --verbose -L --list -T --trace -c --connect -d --disconnect --cache --aio --discard --detect-zeroes --tls-creds --tls-authz --tls-hostname --fork --pid-file --selinux-label ' ;;
    verify) echo '-h --help -q -p ' ;;
    esac
}

_lodge_img() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W 'amend backup bench bitmap check commit compare convert create dd info io map measure mount snapshot rebase resize restore serve verify --help --version' -- "$current")
        return
    fi
    case $previous in
    -f|-F|-O) mapfile -t COMPREPLY < <(compgen -W 'blkdebug bochs cloop dmg file ftp ftps host_cdrom host_device http https iscsi luks nbd nfs null-aio null-co parallels qcow qcow2 qed raw rbd ssh vdi vhdx vmdk vpc' -- "$current"); return ;;
    --output) mapfile -t COMPREPLY < <(compgen -W 'human json' -- "$current"); return ;;
    -t|-T) mapfile -t COMPREPLY < <(compgen -W 'none writeback writethrough directsync unsafe' -- "$current"); return ;;
    esac
    case $current in
    -*) mapfile -t COMPREPLY < <(compgen -W "$(_lodge_img_words "${COMP_WORDS[1]}")" -- "$current") ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    esac
}
complete -o filenames -F _lodge_img lodge-img
