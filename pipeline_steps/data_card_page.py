"""data_card.html: whether the data is fit to train on, in ten seconds; then the figures and examples that say why."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, Literal

from pipeline_steps import page_style
from pipeline_steps.contract.files import CUT
from pipeline_steps.page_style import Html, block, count, details, html, joined, percent, percent_of, table

SPLITS = ("train", "validation", "test")
USES = {"train": "to train", "validation": "to validate", "test": "held out"}
FILES_SHOWN = 50
WORDS_COMPARED = 300  # of two near duplicates, to mark what differs

Level = Literal["passed", "note", "look", "refused"]  # from good to bad; `note` is worth a word and no worry
LEVELS: tuple[Level, ...] = ("passed", "note", "look", "refused")
STATUS = {"passed": "Good", "note": "Good", "look": "Look at this", "refused": "Not fit as it is"}


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know first, and the section that tells more."""

    level: Level
    section: str
    text: str


def render(card: dict[str, Any]) -> str:
    """The page for a data card (the content of data_card.json)."""
    sections = [
        verdict(card),
        _section("rows", "From rows read to rows kept", rows_flow(card)),
        _section("splits", "Splits", splits(card)),
        _section("lengths", "Token lengths", token_lengths(card)),
        _section("truncation", "Truncation and packing", truncation_and_packing(card)),
        _section("cost", "Time and cost of an epoch, estimated", cost(card)),
        _section("quarantine", "Quarantined rows", quarantine(card)),
        _section("duplicates", "Duplicates", duplicates(card)),
        _section("leaks", "Leaks between splits", leaks(card)),
        _section("personal-data", "Personal data", personal_data(card)),
        _section("samples", "Rows as training sees them", template_and_samples(card)),
        _section("files", "Files", files(card)),
        _section("ancestors", "Ancestors", ancestors(card)),
    ]
    return page_style.page(f"Data card: {STATUS[_level(findings(card))].lower()}", "\n".join(sections))


def _section(name: str, title: str, body: str) -> Html:
    return Html(f"<section id='{name}'>\n<h2>{html(title)}</h2>\n{html(body)}\n</section>")


def _paragraph(text: str, kind: str = "") -> Html:
    return Html(f"<p class='{kind}'>{html(text)}</p>")


# ---------------------------------------------------------------- the verdict


def verdict(card: dict[str, Any]) -> Html:
    """The status, one sentence, and what to look at."""
    found = findings(card)
    level = _level(found)
    counts = card["counts"]
    kept = count(card["rows"]["kept"], "row")
    state = "not fit to train on yet" if level == "refused" else "ready"
    uses = ", ".join(f"{count(counts[split])} {USES[split]}" for split in SPLITS)
    items = joined(Html(f"<li><a href='#{one.section}'>{html(one.text)}</a></li>") for one in found)
    clean = ", ".join(f"no {name}" for name in _clean(card, found))
    return Html(
        f"<section class='verdict {'passed' if level == 'note' else level}'>\n"
        f"<p class='status'>{STATUS[level]}</p>\n"
        f"<h1>{html(kept)} {'is' if card['rows']['kept'] == 1 else 'are'} {state}: {html(uses)}</h1>\n"
        + (f"<ul>{items}</ul>\n" if found else "")
        + (_paragraph(f"{clean[0].upper()}{clean[1:]}.", "soft") if clean else "")
        + "</section>"
    )


def _clean(card: dict[str, Any], found: Sequence[Finding]) -> list[str]:
    """What was looked for and not found."""
    checks = {
        "leaks": "leaks between splits" if card["leaks"]["pairs"] else "",
        "personal-data": "personal data",
        "truncation": "truncation",
        "quarantine": "quarantined rows",
        "duplicates": "duplicates",
    }
    return [name for section, name in checks.items() if name and section not in {one.section for one in found}]


def findings(card: dict[str, Any]) -> list[Finding]:
    """What stands out, the worst first."""
    rows, counts = card["rows"], card["counts"]
    found = [Finding("refused", "splits", f"The {split} split has no rows") for split in SPLITS if not counts[split]]
    leaked = [
        f"{_of(pair['overlapping_rows'], pair['rows'], pair['held_out'] + ' row')} in {pair['seen_in']}"
        for pair in card["leaks"]["pairs"]
        if pair["overlapping_rows"]
    ]
    if leaked:
        found.append(Finding("look", "leaks", f"Leaks: {', '.join(leaked)}"))
    found += [*_personal_data_finding(card), *_truncation_finding(card)]
    if rows["quarantined"]:
        limit = card["quarantine"]["limit"]
        over = rows["quarantined"] > limit
        text = f"{_of(rows['quarantined'], rows['read'], 'row')} quarantined, {_limit(over, count(limit))}"
        found.append(Finding("refused" if over else "look", "quarantine", text))
    removed = {"exact": rows["exact_duplicates"], "near": rows["near_duplicates"]}
    if any(removed.values()):
        kinds = ", ".join(f"{count(number)} {kind}" for kind, number in removed.items() if number)
        text = f"{_of(sum(removed.values()), rows['read'], 'row')} left out as duplicates: {kinds}"
        found.append(Finding("look" if removed["near"] else "note", "duplicates", text))
    if card.get("already_trained"):
        found.append(Finding("note", "ancestors", card.get("message") or "A model of this data is registered already"))
    return sorted(found, key=lambda one: -LEVELS.index(one.level))


def _personal_data_finding(card: dict[str, Any]) -> list[Finding]:
    personal = card["personal_data"]
    if not personal["kinds"]:
        return []
    kinds = ", ".join(f"{count(one['findings'])} {_kind(kind)}" for kind, one in personal["kinds"].items())
    levels: dict[str, Level] = {"redact": "note", "fail": "refused"}
    done = {"redact": "redacted", "fail": "found, and the policy is to fail"}.get(
        personal["policy"], "found and left in"
    )
    return [Finding(levels.get(personal["policy"], "look"), "personal-data", f"Personal data {done}: {kinds}")]


def _truncation_finding(card: dict[str, Any]) -> list[Finding]:
    tokens = card.get("tokens")
    if not tokens:
        return [Finding("note", "truncation", "Lengths, truncation and cost are not known: no tokenizer was given")]
    truncated = tokens["truncated"]
    if not truncated["rows"]:
        return []
    over = _has_truncation_limit(card) and truncated["share"] > truncated["limit"]
    text = (
        f"{count(truncated['rows'], 'row')} ({percent(truncated['share'])}) longer than max_input_length: "
        f"{count(truncated['tokens_lost'], 'token')} cut off"
    )
    return [Finding("refused" if over else "look", "truncation", text)]


def _has_truncation_limit(card: dict[str, Any]) -> bool:
    return bool(card["tuning_mode"] != "domain")  # PrepareData has no limit there


def _level(found: Sequence[Finding]) -> Level:
    return max((one.level for one in found), key=LEVELS.index, default="passed")


def _of(part: int, whole: int, unit: str) -> str:
    return f"{count(part)} of {count(whole, unit)} ({percent_of(part, whole)})"


def _limit(over: bool, limit: str) -> str:
    return f"more than the limit of {limit}" if over else f"within the limit of {limit}"


def _kind(kind: str) -> str:
    return kind.replace("_", " ")


# ---------------------------------------------------------------- rows and splits


def rows_flow(card: dict[str, Any]) -> Html:
    """Where every row that was read went to: a picture, and the same as a table."""
    rows, counts = card["rows"], card["counts"]
    kept = [(f"kept: {split}", counts[split], f"--{split}") for split in SPLITS]
    dropped = [
        ("quarantined", rows["quarantined"], "--bad"),
        ("exact duplicates", rows["exact_duplicates"], "--exact"),
        ("near duplicates", rows["near_duplicates"], "--near"),
        ("above the maximum of rows", rows.get("left_out", 0), "--soft"),
    ]
    shown = [*kept, *(one for one in dropped if one[1] or one[0] != dropped[-1][0])]
    body = [(_key(color, name), count(number), percent_of(number, rows["read"])) for name, number, color in shown]
    total = (_key("--line", "read"), count(rows["read"]), percent_of(rows["read"], rows["read"]))
    return joined(
        [_flow_picture(rows, kept, dropped), table(("rows", "number", "share of read"), [total, *body], {1, 2})]
    )


def _key(color: str, name: str) -> Html:
    """A name with its color in the pictures."""
    return Html(f"<span class='keyed'><span class='key' style='background:var({color})'></span>{html(name)}</span>")


def _flow_picture(
    rows: Mapping[str, int], kept: Sequence[tuple[str, int, str]], dropped: Sequence[tuple[str, int, str]]
) -> Html:
    """One bar of all rows read that flows into the splits (close together) and the rows that are left out (apart)."""
    parts = [
        (name, number, color, gap) for group, gap in ((kept, 0.0), (dropped, 14.0)) for name, number, color in group
    ]
    parts = [one for one in parts if one[1] > 0]
    if not parts:
        return Html("")
    gaps = sum(gap for *_, gap in parts)
    # A part of a few rows must be seen, so no part is narrower than this; the bar above is cut in the same proportions.
    widths = [max(8.0, (1000 - gaps) * number / sum(one[1] for one in parts)) for _, number, *_ in parts]
    widths = [width * (1000 - gaps) / sum(widths) for width in widths]
    shapes, upper, lower = [], 0.0, 0.0
    for (name, number, color, gap), width in zip(parts, widths, strict=True):
        above = width * 1000 / (1000 - gaps)
        lower += gap
        ribbon = f"M{upper:.1f} 26L{upper + above:.1f} 26L{lower + width:.1f} 74L{lower:.1f} 74Z"
        shapes.append(
            f"<g fill='var({color})'><title>{html(f'{name}: {count(number)}')}</title>"
            f"<path d='{ribbon}' opacity='.3'/><rect x='{lower:.1f}' y='74' width='{width:.1f}' height='26'/></g>"
        )
        upper, lower = upper + above, lower + width
    told = ", ".join(f"{count(number)} {name}" for name, number, *_ in parts)
    label = html(f"{count(rows['read'], 'row')} read: {told}")
    return Html(
        f"<svg class='flow' viewBox='0 0 1000 100' preserveAspectRatio='none' role='img' aria-label='{label}'>"
        f"<rect width='1000' height='26' fill='var(--line)'><title>{html(count(rows['read'], 'row'))} read</title></rect>"
        f"{''.join(shapes)}</svg>"
    )


def splits(card: dict[str, Any]) -> Html:
    """How many rows each split has, and how the rows came to it."""
    counts, split = card["counts"], card["split"]
    kept = sum(counts.values())
    same = split["group"] if split["group"] == "prompt" else f"value of {split['group']}"
    asked = {"test": percent(split["test_ratio"]), "validation": percent(split["validation_ratio"])}
    if split["own_validation_folder"]:
        asked["validation"] = "own folder"
    body = [
        (
            _key(f"--{name}", name),
            count(counts[name]),
            percent_of(counts[name], kept),
            asked.get(name, "the rest"),
        )
        for name in SPLITS
    ]
    return joined(
        [
            table(("split", "rows", "share of kept", "asked for"), body, {1, 2, 3}),
            _paragraph(
                f"Rows with the same {same} are in one split, which depends on nothing but that and the seed "
                f"({split['seed']}): shares differ a little from what was asked for.",
                "soft",
            ),
        ]
    )


# ---------------------------------------------------------------- tokens


def token_lengths(card: dict[str, Any]) -> Html:
    """How long rows are in tokens: a histogram for each split, and statistics."""
    tokens = card.get("tokens")
    if not tokens:
        return _paragraph("Not known: no tokenizer was given, so the rows were not encoded.")
    histogram = tokens["histogram"]
    edges = histogram["edges"]
    shares = {split: [number / max(1, sum(histogram[split])) for number in histogram[split]] for split in SPLITS}
    charts = joined(_histogram(split, tokens, shares) for split in SPLITS if any(histogram[split]))
    counted = [
        (f"{count(low)} to {count(high)}", *(count(histogram[split][number]) for split in SPLITS))
        for number, (low, high) in enumerate(pairwise(edges))
        if any(histogram[split][number] for split in SPLITS)
    ]
    statistics = [
        (
            split,
            count(one["rows"]),
            count(one["tokens"]),
            f"{count(one['learned_tokens'])} ({percent_of(one['learned_tokens'], one['tokens'])})",
            f"{one['mean']:,.1f}",
            *(count(one[name]) for name in ("median", "p95", "longest")),
        )
        for split, one in ((split, tokens["splits"][split]) for split in SPLITS)
    ]
    head = ("split", "rows", "tokens", "learned tokens", "mean", "median", "95th percentile", "longest")
    return joined(
        [
            _paragraph(
                "Share of a split's rows by their length in tokens, on a logarithmic axis. The dashed line is "
                f"max_input_length ({count(tokens['max_input_length'])}); bins beyond it are red.",
                "soft",
            ),
            Html(f"<div class='sides charts'>{charts}</div>"),
            details("The histogram as a table", table(("tokens", *SPLITS), counted, {1, 2, 3})),
            Html("<h3>Tokens of a row</h3>"),
            table(head, statistics, set(range(1, len(head)))),
            _paragraph(
                "Learned tokens are those that count in the loss: the completion, or all of a domain text.", "soft"
            ),
        ]
    )


def _histogram(split: str, tokens: Mapping[str, Any], shares: Mapping[str, Sequence[float]]) -> Html:
    """One split's histogram; all splits have the same axes, so that their shapes can be compared."""
    edges, limit, statistics = list(tokens["histogram"]["edges"]), tokens["max_input_length"], tokens["splits"][split]
    first = next((number for number in range(len(edges) - 1) if any(one[number] for one in shares.values())), 0)
    edges, values = edges[first:], shares[split][first:]
    while edges[-1] < limit and len(edges) < 32:
        edges.append(max(16, edges[-1] * 2))  # so that the line at max_input_length is on the axis
    left, top, right, bottom = 52, 22, 336, 170
    step = (right - left) / (len(edges) - 1)
    most = max(map(max, shares.values()))
    highest = next((top for top in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if most <= top), 1.0)

    bars = [
        f"<rect x='{left + step * number + 0.5:.1f}' y='{bottom - height:.1f}' width='{max(1.0, step - 1):.1f}' "
        f"height='{height:.1f}' fill='var({'--bad' if edges[number] >= limit else f'--{split}'})'>"
        f"<title>{count(edges[number])} to {count(edges[number + 1])} tokens: {percent(value)} of the rows</title></rect>"
        for number, value in enumerate(values)
        if (height := (bottom - top) * value / highest)
    ]
    lines = [
        f"<path d='M{left} {y:.1f}H{right}' stroke='var(--line)'/>"
        f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{percent(share)}</text>"
        for share in (0.0, highest / 2, highest)
        for y in (bottom - (bottom - top) * share / highest,)
    ]
    labels, free = [], 0.0
    for number, edge in enumerate(edges):
        place, half = left + step * number, len(count(edge)) * 3.75
        if edge & (edge - 1) == 0 and place - half >= free:  # powers of two, as far as labels do not touch
            labels.append(f"<text x='{place:.1f}' y='{bottom + 16}' text-anchor='middle'>{count(edge)}</text>")
            free = place + half
    x = left + step * _position(edges, limit)
    anchor = "end" if x > (left + right) / 2 else "start"
    marker = (
        f"<path d='M{x:.1f} {top - 6}V{bottom}' stroke='var(--text)' stroke-dasharray='4 3'/>"
        f"<text x='{x + (-5 if anchor == 'end' else 5):.1f}' y='{top - 9}' text-anchor='{anchor}'>"
        f"max_input_length {count(limit)}</text>"
    )
    title = _key(f"--{split}", f"{split}, {count(statistics['rows'], 'row')}")
    label = html(
        f"Lengths of {count(statistics['rows'], split + ' row')}: median {count(statistics['median'])}, 95th percentile "
        f"{count(statistics['p95'])}, longest {count(statistics['longest'])} tokens; max_input_length is {count(limit)}"
    )
    return Html(
        f"<figure><figcaption>{title}</figcaption>"
        f"<svg viewBox='0 0 360 206' role='img' aria-label='{label}'><g font-size='12' fill='var(--soft)'>"
        f"{''.join(lines)}</g>{''.join(bars)}<g font-size='12' fill='var(--soft)'>{''.join(labels)}{marker}"
        f"<text x='{(left + right) / 2}' y='202' text-anchor='middle'>tokens of a row</text></g></svg></figure>"
    )


def _position(edges: Sequence[int], length: int) -> float:
    """Where a length is on an axis of bins of equal width: their number, and the logarithmic way through the last."""
    for number, (low, high) in enumerate(pairwise(edges)):
        if length <= high:
            start = max(1, low)
            return number + max(0.0, math.log(max(1, length) / start) / math.log(max(2, high) / start))
    return float(len(edges) - 1)


def truncation_and_packing(card: dict[str, Any]) -> Html:
    """What does not fit into a training sequence, and how full the sequences get."""
    tokens = card.get("tokens")
    if not tokens:
        return _paragraph("Not known: no tokenizer was given.")
    cut, packing, train = tokens["truncated"], tokens["packing"], tokens["splits"]["train"]
    limit = percent(cut["limit"]) if _has_truncation_limit(card) else "none for domain texts"
    rows = [
        ("max_input_length", count(tokens["max_input_length"], "token"), "tokens of a training sequence"),
        (
            "truncated rows",
            f"{count(cut['rows'])} ({percent(cut['share'])})",
            f"of train and validation; limit: {limit}",
        ),
        ("tokens cut off", count(cut["tokens_lost"]), "the ends of those rows, which are not learned"),
        (
            "packed sequences",
            count(packing["sequences"]),
            f"{count(train['rows'], 'train row')} put together; {percent(packing['fill'])} of their tokens are no padding",
        ),
    ]
    return joined([_noted_table(("figure", "value"), rows), _bar(packing["fill"], "Packing fill")])


def _noted_table(head: tuple[str, str], rows: Sequence[tuple[str, str, str]]) -> Html:
    """Names and values, with what each is or comes from below its name: on a phone there is no room for it beside."""
    return table(head, [(page_style.noted(name, note), value) for name, value, note in rows], {1})


def _bar(share: float, label: str) -> Html:
    return Html(
        f"<p class='soft'>{label}: {percent(share)}</p><svg viewBox='0 0 1000 10' preserveAspectRatio='none' "
        f"style='height:.7rem' role='img' aria-label='{label}: {percent(share)}'><rect width='1000' height='10' "
        f"fill='var(--line)'/><rect width='{1000 * min(1.0, share):.1f}' height='10' fill='var(--train)'/></svg>"
    )


def cost(card: dict[str, Any]) -> Html:
    """What an epoch takes, each figure with its source."""
    estimate = card.get("cost")
    if not estimate:
        reason = "no instance type was given" if card.get("tokens") else "no tokenizer was given"
        return _paragraph(f"Not known: {reason}.")

    def known(value: float | None, text: str) -> str:
        return "not known" if value is None else text

    speed, price = estimate["tokens_per_second"], estimate["usd_per_hour"]
    hours, usd, epochs = estimate["hours_per_epoch"], estimate["usd_per_epoch"], estimate["epochs"]
    machines = count(estimate["instance_count"], f"x {estimate['instance_type']}", f"x {estimate['instance_type']}")
    rows = [
        ("tokens", count(estimate["tokens_per_epoch"]), "counted in the train split"),
        ("speed", known(speed, f"{speed or 0:,.0f} tokens/s"), estimate["throughput_source"]),
        (
            "time",
            known(hours, page_style.duration(hours or 0)),
            "tokens / speed; without start-up, loading and validation",
        ),
        (
            "price",
            known(price, f"{page_style.dollars(price or 0)} an hour"),
            f"of one instance: {estimate['price_source']}",
        ),
        ("cost", known(usd, page_style.dollars(usd or 0)), "time x price x instances"),
    ]
    if epochs != 1 and hours is not None:
        spent = page_style.duration(hours * epochs)
        spent += "" if usd is None else f", {page_style.dollars(usd * epochs)}"
        rows.append((f"all {epochs:g} epochs", spent, "the epoch's figures x epochs"))
    return joined(
        [
            _paragraph(f"For {machines}. These are estimates, made before anything ran: a guide, not a bill.", "soft"),
            _noted_table(("one epoch, and where it comes from", "estimate"), rows),
            *([_paragraph(f"{card['memory']}: an estimate too.", "soft")] if card.get("memory") else []),
        ]
    )


# ---------------------------------------------------------------- what was found in the rows


def quarantine(card: dict[str, Any]) -> Html:
    number, told = card["rows"]["quarantined"], card["quarantine"]
    if not number:
        return _paragraph(f"None: every row could be read and used. The limit is {count(told['limit'])}.")
    items = "".join(f"<li class='place'>{html(text)}</li>" for text in told["examples"])
    return joined(
        [
            _paragraph(
                f"{_of(number, card['rows']['read'], 'row')}, {_limit(number > told['limit'], count(told['limit']))}: "
                "set aside, since they cannot be used as they are. All of them are in quarantine.jsonl."
            ),
            Html(f"<ul>{items}</ul>" if items else ""),
        ]
    )


def duplicates(card: dict[str, Any]) -> Html:
    """How many, and examples: what was left out beside what was kept."""
    rows, told = card["rows"], card["duplicates"]
    exact, near = rows["exact_duplicates"], rows["near_duplicates"]
    if not exact and not near:
        return _paragraph(f"None, exact or near (similarity of {told['similarity']:g} or more).")
    shown = [
        _paragraph(
            f"Left out: {count(exact, 'exact duplicate')} and {count(near, 'near duplicate')} (estimated similarity of "
            f"{told['similarity']:g} or more, where 1 is the same words). Of rows that are alike, a held-out one is kept "
            "before one to train on. All of them are in removed.jsonl."
        )
    ]
    if told["near"]:
        body = joined(_near_duplicate(one) for one in told["near"])
        shown.append(details(_examples("near duplicates", len(told["near"]), near), body))
    if told["exact"]:
        body = joined(_exact_duplicate(one) for one in told["exact"])
        shown.append(details(_examples("exact duplicates", len(told["exact"]), exact), body))
    return joined(shown)


def _examples(of_what: str, shown: int, total: int) -> str:
    return f"Examples of {of_what}: {'all' if shown >= total else f'{count(shown)} of'} {count(total)}"


def _exact_duplicate(one: Mapping[str, Any]) -> Html:
    label = f"{one['removed']} is the same as {one['kept']}"
    return Html(f"<article class='answer'><div class='soft place'>{html(label)}</div>{_text(one['text'])}</article>")


def _near_duplicate(one: Mapping[str, Any]) -> Html:
    removed, kept = _marked(one["text"], one["kept_text"])
    return Html(
        f"<article class='answer'><div class='label'>similarity {one['similarity']:.2f}</div><div class='sides'>"
        f"<div><div class='soft place'>left out: {html(one['removed'])}</div>{_text(removed)}</div>"
        f"<div><div class='soft place'>kept: {html(one['kept'])}</div>{_text(kept)}</div></div></article>"
    )


def _text(text: str) -> Html:
    return Html(f"<pre dir='auto'>\n{html(text) if text else '(empty)'}</pre>")


def _marked(one: str, other: str) -> tuple[Html, Html]:
    """Two texts with the words marked that only one of them has; where both were cut at the front, not at their front."""
    words, others = re.findall(r"\s+|\S+", one), re.findall(r"\s+|\S+", other)
    if len(words) > 2 * WORDS_COMPARED or len(others) > 2 * WORDS_COMPARED:
        return html(one), html(other)
    steps = SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    are_cut = one.startswith(CUT) and other.startswith(CUT)

    def mark(step: str, start: int, text: str) -> Html:
        at_front = are_cut and start <= 2  # the sign, a space, and what follows them
        if step == "equal" or not text.strip() or at_front:
            return html(text)
        return Html(f"<mark>{html(text)}</mark>")

    left = [mark(step, start, "".join(words[start:stop])) for step, start, stop, _, _ in steps]
    right = [mark(step, start, "".join(others[start:stop])) for step, _, _, start, stop in steps]
    return joined(left), joined(right)


def leaks(card: dict[str, Any]) -> Html:
    """Held-out rows whose text is in rows that are trained on: they would make the evaluation look too good."""
    told = card["leaks"]
    words = told["ngram_words"]
    sampled = (
        ""
        if told["sampled_share"] >= 1
        else f" A sample of {percent(told['sampled_share'])} of all runs was looked at."
    )
    explained = _paragraph(
        f"A row leaks if most of its runs of {words} words ({words}-grams) are in rows of another split as well: what is "
        f"measured on it is then partly memory.{sampled}",
        "soft",
    )
    rows = [
        (
            f"{pair['held_out']} rows seen in {pair['seen_in']}",
            count(pair["overlapping_rows"]),
            count(pair["rows"]),
            percent_of(pair["overlapping_rows"], pair["rows"]),
        )
        for pair in told["pairs"]
    ]
    if not rows:
        return joined([explained, _paragraph("No splits were compared.")])
    examples = [
        details(
            _examples(
                f"{pair['held_out']} rows seen in {pair['seen_in']}", len(pair["examples"]), pair["overlapping_rows"]
            ),
            joined(_leak(one, words) for one in pair["examples"]),
        )
        for pair in told["pairs"]
        if pair["examples"]
    ]
    return joined([explained, table(("splits", "leaked rows", "of", "share"), rows, {1, 2, 3}), *examples])


def _leak(one: Mapping[str, Any], words: int) -> Html:
    shared = f"{count(one['shared_ngrams'])} of {count(one['ngrams'])} {words}-grams"
    where = f"{one['held_out']} shares {shared} with {one['seen_in']}"
    return Html(f"<article class='answer'><div class='soft place'>{html(where)}</div>{_text(one['text'])}</article>")


POLICIES = {
    "report": "The policy is to report: it is in the rows as they are trained on.",
    "redact": "The policy is to redact: it was replaced in the rows before anything else was done with them.",
    "fail": "The policy is to fail: data with personal data in it is not published.",
}


def personal_data(card: dict[str, Any]) -> Html:
    told = card["personal_data"]
    policy = POLICIES.get(told["policy"], f"Policy: {told['policy']}.")
    if not told["kinds"]:
        return _paragraph(f"None was found; the policy is {told['policy']}.")
    rows = [
        (_kind(kind), count(one["findings"]), count(one["rows"]), percent_of(one["rows"], card["rows"]["read"]))
        for kind, one in told["kinds"].items()
    ]
    examples = [
        (joined([Html("<code>"), one["masked"], Html("</code>")]), _kind(one["kind"]), one["row"])
        for one in told["examples"]
    ]
    shown = [_paragraph(policy), table(("kind", "findings", "rows", "share of rows read"), rows, {1, 2, 3})]
    if examples:
        shown.append(details("Examples, masked", table(("masked", "kind", "row"), examples)))
    return joined(
        [*shown, _paragraph("Patterns find it: some findings are none, and some personal data is not found.", "soft")]
    )


# ---------------------------------------------------------------- the rows themselves, and where they come from


def template_and_samples(card: dict[str, Any]) -> Html:
    """The prompt template, and the first rows of each split with prompt and completion told apart."""
    template, mode = card.get("template"), card["tuning_mode"]
    if template:
        both = block("template: prompt", template["prompt"]) + _completion(
            template["completion"], "template: completion"
        )
        shown = [Html(f"<article class='answer'>{both}</article>")]
        if card.get("chat_format"):
            shown.insert(
                0, _paragraph("There is no template.json: the prompt is the base model's own chat template.", "soft")
            )
    else:
        reasons = {
            "chat": f"No template. {card.get('chat_format') or ''}",
            "domain": "No template: a domain text is learned as it is.",
        }
        shown = [_paragraph(reasons.get(mode, "No template was given."), "soft")]
    samples = card.get("samples") or {}
    for split in SPLITS:
        rows = samples.get(split) or []
        if rows:
            opened = " open" if split == "train" else ""
            body = joined(_sample(row) for row in rows)
            shown.append(
                Html(f"<details{opened}><summary>{count(len(rows), f'{split} row')}</summary>{body}</details>")
            )
    if not any(samples.values()):
        shown.append(_paragraph("No sample rows were written."))
    return joined(shown)


def _sample(turns: Sequence[Sequence[str]]) -> Html:
    """A row by its turns, each a prompt and its completion."""
    shown = []
    for prompt, completion in turns:
        if prompt:
            shown.append(block("prompt: read, not learned", prompt))
        shown.append(_completion(completion, "completion: learned" if prompt else "text: learned"))
    return Html(f"<article class='answer'>{joined(shown)}</article>")


def _completion(text: str, label: str) -> Html:
    return block(label, text, "completion")


def files(card: dict[str, Any]) -> Html:
    found = card["files"]
    shown = [(one["name"], count(one["rows"]), page_style.size(one["bytes"])) for one in found[:FILES_SHOWN]]
    total = (f"{count(len(found), 'file')} in all", *_sums(found))
    more = len(found) - FILES_SHOWN
    hidden = [(f"{count(more, 'more file')}", *_sums(found[FILES_SHOWN:]))] if more > 0 else []
    return table(("file", "rows", "size"), [*shown, *hidden, *([total] if len(found) > 1 else [])], {1, 2})


def _sums(found: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    return count(sum(one["rows"] for one in found)), page_style.size(sum(one["bytes"] for one in found))


def ancestors(card: dict[str, Any]) -> Html:
    """What the dataset is known by, and where it lies."""
    tokens = card.get("tokens") or {}
    uris = card.get("uris") or {}
    rows = [
        ("tuning mode", card["tuning_mode"]),
        ("dataset digest", card["dataset_digest"]),
        ("test digest", card["test_digest"]),
        ("tokenizer digest", tokens.get("tokenizer_digest") or "none: no tokenizer was given"),
        *((f"{split} split", uris[split]) for split in SPLITS if split in uris),
        *([] if uris else [("published to", "nowhere: the data was only checked")]),
        *([("earlier training", card["message"])] if card.get("message") else []),
        ("prepared in", f"{card['seconds']:,.1f} s"),
    ]
    return page_style.rows_table(rows)
