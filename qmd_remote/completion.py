"""What makes bash, zsh and fish complete our command lines, as data.

Each script asks the program itself, by Typer's protocol: `_QMD_REMOTE_COMPLETE` says how to answer, another variable
holds the line up to the cursor. bash gets a word a line, zsh and fish get words with their meanings. Where the program
knows no word, files are completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# bash splits words at "=", the program does not: it gets the line, of which -1 is the last word, and bash what comes
# behind the "="
BASH = """\
# bash completion for qmd-remote
_qmd_remote() {
    local line="${COMP_LINE:0:COMP_POINT}" word IFS=$'\\n'
    word="${line##*[[:space:]]}"
    [[ -n $word ]] || line+="''"
    COMPREPLY=($(_QMD_REMOTE_COMPLETE=complete_bash COMP_WORDS="$line" COMP_CWORD=-1 "${1/#\\~/$HOME}" 2>/dev/null))
    [[ $word != *=* ]] || COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
}

complete -o default -F _qmd_remote qmd-remote
"""

ZSH = """\
#compdef qmd-remote
_qmd-remote() {
    local line value
    local -a found lines
    lines=(${(f)"$(_QMD_REMOTE_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \\
        _TYPER_COMPLETE_ARGS="${(j: :)words[1,CURRENT-1]} $PREFIX" ${(Q)~words[1]} 2>/dev/null)"})
    for line in $lines; do
        value=${line%%$'\\t'*}
        found+=("${value//:/\\\\:}${line[$#value+1,-1]/$'\\t'/:}")
    done
    if (( ! $#found )); then
        _files
        return
    fi
    [[ $PREFIX == --*=* ]] && compset -P '*='
    _describe 'qmd-remote' found
}

# a file in fpath is the function's body; anything else that reads this only wants to know it
if [[ $funcstack[1] == _qmd-remote ]]; then
    _qmd-remote "$@"
else
    compdef _qmd-remote qmd-remote
fi
"""

FISH = """\
# fish completion for qmd-remote
function __qmd_remote
    set -lx _QMD_REMOTE_COMPLETE complete_fish
    set -lx _TYPER_COMPLETE_FISH_ACTION get-args
    set -lx _TYPER_COMPLETE_ARGS (commandline -cp)
    set -l word (commandline -ct)
    set -l program (string replace -r '^~(?=/)' $HOME -- (commandline -opc)[1])
    set -l found ($program 2>/dev/null | string match -v '')
    if not set -q found[1]
        __fish_complete_path $word
    else if string match -qr '^--[^=]+=' -- $word
        printf '%s\\n' (string match -r '^--[^=]+=' -- $word)$found
    else
        printf '%s\\n' $found
    end
end

complete --command qmd-remote --no-files --arguments '(__qmd_remote)'
"""

SCRIPTS: Mapping[str, str] = MappingProxyType({"bash": BASH, "zsh": ZSH, "fish": FISH})
