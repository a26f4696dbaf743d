"""What the pages share: the look, the shell, tables and numbers. Every helper escapes text that is not Html."""

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6675; --line: #d9dee5; --page: #fff; --card: #f6f8fa;
  --good: #1a7f37; --look: #9a6700; --bad: #c62828; --base: #8a94a3; --tuned: #0b6bcb;
  --train: #0b6bcb; --validation: #1b998b; --test: #7b4fc9; --near: #d99a1c; --exact: #8a94a3; --mark: #ffe9a8;
  --champion: #7b4fc9 }
@media (prefers-color-scheme: dark) { :root { --text: #e6eaf0; --soft: #9aa5b4; --line: #323a46; --page: #12161c;
  --card: #1a2028; --good: #4cc26b; --look: #e3b341; --bad: #ff7b72; --base: #7d8896; --tuned: #58a6ff;
  --train: #58a6ff; --validation: #3fc1b0; --test: #b392f0; --near: #c68a17; --exact: #7d8896; --mark: #5c4a12;
  --champion: #b392f0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem } p { margin: .4rem 0 } a { color: var(--tuned) }
.verdict { border-left: .4rem solid; padding: .8rem 1rem; background: var(--card); border-radius: .3rem }
.passed { border-color: var(--good) } .look { border-color: var(--look) } .refused { border-color: var(--bad) }
.passed h1, .passed .status { color: var(--good) } .look .status { color: var(--look) }
.refused h1, .refused .status { color: var(--bad) }
.status { font-weight: 700; margin: 0 }
ul { margin: .4rem 0 0; padding-left: 1.2rem } .soft { color: var(--soft); font-weight: normal }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
.pairs th { width: 15rem } th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.answer { background: var(--card); border-radius: .4rem; padding: .8rem 1rem; margin: 0 0 1rem }
.answer pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; font: inherit }
.answer pre:last-child { margin-bottom: 0 } .answer pre.completion { border-left: .2rem solid var(--tuned);
  padding: .3rem .7rem; background: var(--page); border-radius: 0 .3rem .3rem 0 }
.sides { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)) }
.sides > * { min-width: 0 } .charts { gap: 1rem 1.5rem }
.label { font-size: .8rem; font-weight: 600; letter-spacing: .03em; text-transform: uppercase; color: var(--soft) }
.label.tuned { color: var(--tuned) } .place { overflow-wrap: anywhere } svg { width: 100%; height: auto; display: block; overflow: visible }
figure { margin: 0; max-width: 34rem } figcaption { margin: 0 0 .2rem }
.flow { height: 7rem; margin: .6rem 0 .2rem }
.keyed { white-space: nowrap } .note { display: block; font-size: .9rem; overflow-wrap: anywhere }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .5em }
details { margin: .6rem 0 } summary { cursor: pointer; color: var(--tuned) } details[open] summary { margin-bottom: .6rem }
mark { background: var(--mark); color: inherit; border-radius: .15em }
code { font-size: .9em; overflow-wrap: anywhere; unicode-bidi: isolate }
@media (max-width: 34rem) { th, td { padding: .4rem .45rem } h1 { font-size: 1.35rem } table { font-size: .92rem }
  .pairs th { width: 8.5rem }
  th.number, td.number .note { white-space: normal }
  .stacked thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  .stacked tr { display: block; padding: .5rem 0;
  border-bottom: 1px solid var(--line) } .stacked tbody th, .stacked td { display: block; padding: .1rem 0; border: 0 }
  .stacked td, .stacked td.number { display: flex; gap: 1rem; justify-content: space-between; text-align: right;
  white-space: normal } .stacked td::before { content: attr(data-column); color: var(--soft); text-align: left } }
"""

NO_BREAK = "\u00a0"
NUMBER = " class='number'"
STACKED_COLUMNS = 5  # a table of so many does not fit a phone: there each row becomes a small table of its own


class Html(str):
    """Markup that a helper of the pages made; any other text is escaped before it is shown."""


def html(text: str) -> Html:
    """Any text as markup that shows it."""
    return text if isinstance(text, Html) else Html(escape(text))


def joined(parts: Iterable[str]) -> Html:
    """The parts one after the other, each escaped unless it is markup."""
    return Html("".join(map(html, parts)))


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page around the markup `body`, with `style` besides the common one and a `script` of ours.

    Nothing in it can come from elsewhere, no other script than that one can run, and it is always valid UTF-8.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written


def rows_table(rows: Sequence[tuple[str, str]]) -> Html:
    """Names and their values."""
    body = "".join(f"<tr><th scope='row'>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in rows)
    return _scrolled(f"<table class='pairs'><tbody>{body}</tbody></table>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> Html:
    """A table whose rows begin with their name; the columns of `numbers` are set as numbers."""
    kinds = [NUMBER if column in numbers else "" for column in range(len(head))]
    first = "".join(
        f"<th scope='col' role='columnheader'{kind}>{html(text)}</th>" for text, kind in zip(head, kinds, strict=True)
    )
    lines = []
    for name, *values in rows:
        cells = "".join(
            f"<td role='cell' data-column='{html(column)}'{kind}><span>{html(value)}</span></td>"
            for column, kind, value in zip(head[1:], kinds[1:], values, strict=True)
        )
        lines.append(f"<tr role='row'><th scope='row' role='rowheader'>{html(name)}</th>{cells}</tr>")
    # The roles are what the tags say already; a browser forgets them where the style stacks the cells.
    stacked = " class='stacked'" if len(head) >= STACKED_COLUMNS else ""
    return _scrolled(
        f"<table role='table'{stacked}><thead role='rowgroup'><tr role='row'>{first}</tr></thead>"
        f"<tbody role='rowgroup'>{''.join(lines)}</tbody></table>"
    )


def _scrolled(body: str) -> Html:
    """A wide thing in a box of its own, which scrolls on a phone, and by keyboard."""
    return Html(f"<div class='scroll' tabindex='0'>{body}</div>")


def noted(name: str, note: str) -> Html:
    """A name with a remark below it: the first cell of a row."""
    return Html(f"{html(name)}<span class='soft note'>{html(note)}</span>")


def details(summary: str, body: str) -> Html:
    """What is shown when a reader asks for it."""
    return Html(f"<details><summary>{html(summary)}</summary>{html(body)}</details>")


def block(label: str, text: str, kind: str = "") -> Html:
    """A labelled text with its line breaks, in its own direction."""
    shown = html(text) if text else "<span class='soft'>(empty)</span>"
    # The parser drops a line break right after <pre>; without this one it would drop the text's own.
    return Html(f"<div class='label'>{escape(label)}</div><pre dir='auto' class='{kind}'>\n{shown}</pre>")


def count(number: int, one: str = "", many: str = "") -> str:
    """`1,234`, or with a unit `1 row`, `1,234 rows`."""
    unit = one if number == 1 else many or f"{one}s"
    return f"{number:,} {unit}" if one else f"{number:,}"


def percent(share: float) -> str:
    """A share (0..1) as percent; a small one is never shown as none, nor a large one as all."""
    if 0 < share < 0.001:
        return f"<{NO_BREAK}0.1{NO_BREAK}%"
    if 0.999 < share < 1:
        return f">{NO_BREAK}99.9{NO_BREAK}%"
    whole = abs(share * 100 - round(share * 100)) < 1e-9
    return f"{share * 100:.{0 if whole else 1}f}{NO_BREAK}%"


def percent_of(part: float, whole: float) -> str:
    """`part` as percent of `whole`; a dash where there is no whole."""
    return percent(part / whole) if whole else "-"


def duration(hours: float) -> str:
    """A time in the two units that tell it best."""
    seconds = round(hours * 3600)
    if seconds < 1:
        return "less than 1 s"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60} min"


def dollars(amount: float) -> str:
    """US dollars to the cent."""
    return "less than $0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def size(number: float) -> str:
    """Bytes, in the decimal unit that suits them."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        del units[0]
    return f"{number:,.0f} bytes" if units[0] == "bytes" else f"{number:,.1f} {units[0]}"
