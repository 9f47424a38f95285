# Completes rmlaunch in fish:  rmlaunch completion fish | source

function __rmlaunch_candidates
    set -l words (commandline -opc)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -l current (commandline -ct)
    set -e words[1]
    set -l found ($program __complete $words "$current" 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path "$current"
    else
        printf '%s\n' $found
    end
end

complete -c rmlaunch -f -a '(__rmlaunch_candidates)'
