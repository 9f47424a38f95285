# Completes rmlaunch in bash:  source <(rmlaunch completion bash)
# Bash splits words at = and :, so they are joined here; Bash replaces the last part alone.

_rmlaunch() {
    local part="" before="" program="${COMP_WORDS[0]}" current cut="" value
    local -a words=()
    for part in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ -n "$part" && ${#words[@]} -gt 0 && ( "$part" == [=:@]* || "$before" == [=:@]* ) ]]; then
            words[${#words[@]} - 1]+="$part"
        else
            words+=("$part")
        fi
        before="$part"
    done
    [[ ${#words[@]} -gt 0 ]] || words=("")
    current="${words[${#words[@]} - 1]}"
    if [[ "$part" == [=:@]* ]]; then
        cut="$current"
    else
        cut="${current%"$part"}"
    fi
    [[ "$program" != "~/"* ]] || program="$HOME/${program:2}"
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        COMPREPLY+=("${value#"$cut"}")
        [[ "$value" != *[=.,] ]] || compopt -o nospace 2>/dev/null
    done < <("$program" __complete "${words[@]}" 2>/dev/null)
}

complete -o default -F _rmlaunch rmlaunch
