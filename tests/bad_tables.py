"""participants.tsv as it should not be, and unusual ones that are fine: one corpus for all tests.

`REFUSED` maps a name to the bytes of a table and words that the error must contain. `ACCEPTED` maps a name to the
bytes of one that is read, what it says of sub-01 (age, sex; None is unknown) and whether there is a warning.
"""

from __future__ import annotations


def _lines(*lines: str, encoding: str = "utf-8", end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode(encoding)


HEAD = "participant_id\tage\tsex"
SOUND = _lines(HEAD, "sub-01\t49\tF")

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "needs a participant_id column"),
    "commas for tabs": (_lines("participant_id,age,sex", "sub-01,49,F"), "separated by tabs"),
    "spaces for tabs": (_lines("participant_id age sex", "sub-01 49 F"), "separated by tabs"),
    "another name for the column": (_lines("subject\tage\tsex", "sub-01\t49\tF"), "needs a participant_id column"),
    "no head": (_lines("sub-01\t49\tF"), "needs a participant_id column"),
    "Latin-1": (_lines(HEAD + "\tcity", "sub-01\t49\tF\tKöln", encoding="latin-1"), "UTF-8"),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\x06\x00\xff\xfe" + bytes(range(256)), "UTF-8"),
    "ragged, too long": (_lines(HEAD, "sub-01\t49\tF\tleft"), "line 2 has 4 columns, not 3"),
    "ragged, too short": (_lines(HEAD, "sub-02\t30\tM", "sub-01\t49"), "line 3 has 2 columns, not 3"),
    "somebody twice": (_lines(HEAD, "sub-01\t49\tF", "sub-01\t50\tF"), "sub-01 stands in it twice"),
    "a column twice": (_lines(HEAD + "\tage", "sub-01\t49\tF\t94"), "age stands in its first line twice"),
    "a quote left open": (_lines(HEAD + "\tnote", 'sub-01\t49\tF\t"said', "sub-02\t30\tM\t"), "quote"),
    "a field without end": (_lines(HEAD + "\tnote", "sub-01\t49\tF\t" + "x" * 200_000), "field"),
}

ACCEPTED: dict[str, tuple[bytes, tuple[float | None, str | None], bool]] = {
    "byte order mark": (_lines(HEAD, "sub-01\t49\tF", encoding="utf-8-sig"), (49, "F"), False),
    "Windows lines": (_lines(HEAD, "sub-01\t49\tF", end="\r\n"), (49, "F"), False),
    "empty lines": (_lines(HEAD, "", "sub-01\t49\tF", ""), (49, "F"), False),
    "n/a": (_lines(HEAD, "sub-01\tn/a\tn/a"), (None, None), False),
    "89+": (_lines(HEAD, "sub-01\t89+\tF"), (None, "F"), True),
    "a decimal comma": (_lines(HEAD, "sub-01\t49,5\tF"), (None, "F"), True),
    "nan": (_lines(HEAD, "sub-01\tnan\tF"), (None, "F"), True),
    "inf": (_lines(HEAD, "sub-01\tinf\tF"), (None, "F"), True),
    "an age beyond any": (_lines(HEAD, "sub-01\t" + "9" * 400 + "\tF"), (None, "F"), True),
    "months that say so": (_lines(HEAD, "sub-01\t588m\tF"), (49, "F"), False),
    "no column of ages": (_lines("participant_id\tsex", "sub-01\tF"), (None, "F"), False),
    "spellings of sex": (_lines(HEAD, "sub-02\t30\tfemale", "sub-03\t30\t1", "sub-01\t49\tmale"), (49, "M"), False),
    "sex as a number": (_lines(HEAD, "sub-01\t49\t1"), (49, None), True),
    "somebody without scans": (_lines(HEAD, "sub-77\t30\tM", "sub-01\t49\tF"), (49, "F"), False),
    "nobody with scans": (_lines(HEAD, "sub-77\t30\tM"), (None, None), False),
    "a path as a name": (_lines(HEAD, "sub-../../etc\t30\tM", "sub-01\t49\tF"), (49, "F"), True),
    "UTF-16": (_lines(HEAD, "sub-01\t49\tF", encoding="utf-16"), (49, "F"), True),
    "tabs in quotes": (_lines(HEAD + "\tnote", 'sub-01\t49\tF\t"a\tb"'), (49, "F"), False),
}
