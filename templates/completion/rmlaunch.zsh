#compdef rmlaunch
# Completes rmlaunch in zsh:  source <(rmlaunch completion zsh)    or as _rmlaunch in a folder of fpath

_rmlaunch() {
    local line value
    local -a whole open whole_said open_said
    for line in "${(@f)$("${(Q)words[1]/#\~\//$HOME/}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        value="${line%%$'\t'*}"
        [[ -n "$value" ]] || continue
        if [[ "$value" == *[=.,] ]]; then
            open+=("$value")
            open_said+=("${line/$'\t'/  -- }")
        else
            whole+=("$value")
            whole_said+=("${line/$'\t'/  -- }")
        fi
    done
    (( ${#whole} + ${#open} )) || { _files; return }
    (( ${#open} == 0 )) || compadd -S '' -l -d open_said -a open
    (( ${#whole} == 0 )) || compadd -l -d whole_said -a whole
}

if [[ "${zsh_eval_context[-1]}" == loadautofunc ]]; then
    _rmlaunch "$@"
else
    compdef _rmlaunch rmlaunch
fi
