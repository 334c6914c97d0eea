"""Show the fix of an error as it is typed on the command line.

Errors hold their fix in Python. The same text is rendered here, so that there is one definition.
"""

from __future__ import annotations

import re
import shlex

_PYTHON = re.compile(
    r"\bds\[|\bfc\[|\btruth\[|\bds = |\.attrs|\.sel\(|\.isel\(|lambda|import |\.accumulate\("
    r"|=truth\."
)
_CALL = re.compile(r"\b(?:ds|fc|forecast|scores|tuned)\.aurora\.(\w+)\(([^()]*)\)")
_FUNCTION = re.compile(
    r"\b(?:xaurora\.)?(predict|finetune|evaluate|prepare|climatology|scorecard|compare)\(([^()]*)\)"
)
_OPTION = re.compile(
    r"(?<![\w.'\"-])(?P<name>[a-z][a-z0-9_]+)=(?P<value>\[[^\]]*\]|\([^)]*\)|'[^']*'|\"[^\"]*\"|"
    r"[-+]?[\w.*]+(?:\.\.\.)?|\.\.\.)?"
)
_FIRST = {"finetune": "target", "estimate": "target", "predict": "lead", "check": "target"}
"""What the first argument of a method is called."""
_STATISTICS = re.compile(
    r"statistics=ds\.aurora\.statistics\(\['([^']+)'\], time=\('([^']+)', '([^']+)'\)\)"
)
_SWITCHES = ("activation_checkpointing", "latents")
"""Options that take ``on`` or ``off``, because they have other values as well."""


def as_command(fix: str) -> str:
    """Return a fix with options as they are typed on the command line.

    Code that changes data has no counterpart there and is marked as Python.

    Examples
    --------
    >>> as_command("resume=True to continue it, or another out=")
    '--resume to continue it, or another --out'
    >>> as_command("ds.aurora.finetune(target='tp', batch_size=1)")
    'xaurora finetune FILES --target tp --batch-size 1'
    """
    if _PYTHON.search(fix):
        return f"in Python, {fix}"
    fix = _STATISTICS.sub(
        r"xaurora stats FILES --names=\1 --time=\2:\3 --out=statistics.nc, then"
        " --statistics=statistics.nc",
        fix,
    )
    fix = _CALL.sub(_command, fix)
    fix = _FUNCTION.sub(_command, fix)
    return _OPTION.sub(_flag, fix)


def _command(match: re.Match[str]) -> str:
    verb, arguments = match.groups()
    parts = [part.strip() for part in re.split(r",\s*(?![^\[(]*[\])])", arguments) if part.strip()]
    shown = []
    for i, part in enumerate(parts):
        if "=" not in part and i == 0 and verb in _FIRST:
            part = f"{_FIRST[verb]}={part}"
        shown.append(_OPTION.sub(_flag, part) if "=" in part else "")
    files = {"evaluate": "FORECAST TRUTH", "scorecard": "SCORES"}.get(verb, "FILES")
    return " ".join([f"xaurora {verb} {files}", *filter(None, shown)])


def _flag(match: re.Match[str]) -> str:
    flag = f"--{match['name'].replace('_', '-')}"
    value = match["value"]
    if value == "True" and match["name"] in _SWITCHES:
        return f"{flag} on"
    if value is None or value == "True":
        return flag
    if value == "False":
        return f"{flag} off"
    if value == "None":
        return f"no {flag}"
    if value[0] in "[(":
        several = [v.strip(" '\"") for v in value[1:-1].split(",") if v.strip()]
        return " ".join(f"{flag} {v}" for v in several) or f"no {flag}"
    value = value.strip(chr(39) + chr(34))
    return f"{flag} {shlex.quote(value) if ' ' in value else value}"
