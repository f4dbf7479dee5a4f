"""Choice by name from a table, and the error that a user can mend."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar('T')


class UserError(Exception):
    """Bad input: the message says what is wrong and what to do; `main` prints it without a traceback."""


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """Returns `table[name]`.

    Args:
      table: the choices.
      name: the chosen one.
      key: the configuration key that chose it, for the message.

    Raises:
      UserError: `name` is not in the table; the message lists what is.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise UserError(f'{key}={name!r} is unknown. Available: {", ".join(sorted(table))}.{hint}')


def shortlist(lines: list[str], limit: int = 10) -> str:
    """Returns at most `limit` of the lines, indented, and how many more there are."""
    more = [f'… and {len(lines) - limit} more'] if len(lines) > limit else []
    return ''.join(f'\n  {line}' for line in lines[:limit] + more)
