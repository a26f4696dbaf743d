"""Personal data and secrets in a text: e-mail addresses, phone, card, account and national identity numbers, keys.

What a number is, its library says (libphonenumber, python-stdnum, detect-secrets); the patterns here only find what is
worth asking about. A number that any report could hold counts only in the form that people write it in, or beside a word
that says what it is: a check digit alone is met by chance.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

KINDS = ("email", "phone", "payment_card", "iban", "national_id", "secret")

# Cheap questions that most texts answer with no.
DIGIT = re.compile(r"\d")
SEVEN_DIGITS = re.compile(r"\d(?:[ .()/-]{0,2}\d){6}")
LETTER_AT_DIGIT = re.compile(r"\d[ -]?[A-Z]|[A-Z][ -]?\d")

EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b")
CARD = re.compile(r"(?<![\w.-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{4,5})(?![\w-])")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")

# First digits and lengths of the issuers' cards.
CARD_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)

INTERNATIONAL_PHONE = re.compile(r"\+\d")
AMERICAN_PHONE = re.compile(r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])")
# Elsewhere national numbers look like any other number, so a word must say what it is.
PHONE_WORDS = (
    "phone", "telephone", "tel", "mobile", "cell", "fax", "call", "teléfono", "telefono", "móvil", "movil", "telefon",
    "handy", "téléphone", "tél",
)  # fmt: skip
NAMED_PHONE = re.compile(
    rf"\b(?:{'|'.join(PHONE_WORDS)})\b[^\n\d+]{{0,12}}"
    r"(0?\d(?:[ ./()-]{0,2}\d){7,11})(?!\d)",
    re.IGNORECASE,
)
PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PT", "BR", "MX", "AR", "IN", "AU", "CH", "AT", "BE", "PL")


@dataclass(frozen=True)
class IdentityNumber:
    """How a country's number is written, the module of python-stdnum that knows it, and the word it needs beside it."""

    written: str
    module: str
    cue: str = ""


IDENTITY_NUMBERS = (
    IdentityNumber(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    IdentityNumber(r"\d{8}[- ]?[A-Z]", "es.dni"),
    IdentityNumber(r"[XYZ][- ]?\d{7}[- ]?[A-Z]", "es.nie"),
    IdentityNumber(r"[12] \d{2} \d{2} \d[\dAB] \d{3} \d{3} \d{2}", "fr.nir"),
    IdentityNumber(r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    IdentityNumber(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    IdentityNumber(r"(?:\d{2})?\d{6}[-+]\d{4}", "se.personnummer", "personnummer|personal identity"),
    IdentityNumber(r"\d{6}[-+A]\d{3}[\dA-Y]", "fi.hetu"),
    IdentityNumber(r"\d{6}-\d{4}", "dk.cpr", "cpr|cpr-nummer"),
    IdentityNumber(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    IdentityNumber(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", "cl.rut"),
    IdentityNumber(r"\d{2}-\d{8}-\d", "ar.cuit"),
    IdentityNumber(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", "mx.curp"),
    IdentityNumber(r"[A-Z]{5}\d{4}[A-Z]", "in_.pan"),
    IdentityNumber(r"\d{4} \d{4} \d{4}", "in_.aadhaar", "aadhaar|uidai"),
    IdentityNumber(r"\d{6}-[1-8]\d{6}", "kr.rrn"),
    IdentityNumber(r"\d{17}[\dX]", "cn.ric"),
    IdentityNumber(r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", "nhs"),
    IdentityNumber(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", "sin|social insurance"),
    IdentityNumber(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", "tfn|tax file"),
    IdentityNumber(r"\d{11}", "pl.pesel", "pesel"),
    IdentityNumber(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", "steuer-?id|steuerliche|identifikationsnummer|idnr"),
    IdentityNumber(r"\d{9}", "nl.bsn", "bsn|burgerservicenummer"),
    IdentityNumber(r"\d{3} ?\d{3} ?\d{3}", "pt.nif", "nif|contribuinte"),
    IdentityNumber(r"\d{6} ?\d{5}", "no.fodselsnummer", "f[oø]dselsnummer|personnummer"),
)
CUE_CHARACTERS = 40  # before a number, in which its cue may stand
# All of them begin with a digit or a capital letter: asked first, since that is quick.
IDENTITY_CANDIDATE = re.compile(
    rf"(?=[A-Z\d])(?<![\w.+-])(?:{'|'.join(one.written for one in IDENTITY_NUMBERS)})(?![\w-])"
)

# detect-secrets' plugins, and what a text must hold for one of them to find anything.
SECRET_PLUGINS = {
    "aws.AWSKeyDetector": ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws"),
    "azure_storage_key.AzureStorageKeyDetector": ("AccountKey=",),
    "basic_auth.BasicAuthDetector": ("://",),
    "github_token.GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "gitlab_token.GitLabTokenDetector": (
        "glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941", "glcbt-", "glimt-", "glptt-", "glagent-",
    ),
    "jwt.JwtTokenDetector": ("eyJ",),
    "npm.NpmDetector": ("_authToken=",),
    "openai.OpenAIDetector": ("T3BlbkFJ",),
    "private_key.PrivateKeyDetector": ("PRIVATE KEY",),
    "pypi_token.PypiTokenDetector": ("pypi-AgE",),
    "sendgrid.SendGridDetector": ("SG.",),
    "slack.SlackDetector": ("xox", "hooks.slack"),
    "square_oauth.SquareOAuthDetector": ("sq0csp-",),
    "stripe.StripeDetector": ("k_live_",),
    "telegram_token.TelegramBotTokenDetector": (":AA",),
    "twilio.TwilioKeyDetector": ("AC", "SK"),
}  # fmt: skip
SECRET_HINTS = tuple((hint, plugin) for plugin, hints in SECRET_PLUGINS.items() for hint in hints)
END_OF_PRIVATE_KEY = re.compile(r"-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----")


@dataclass(frozen=True)
class Finding:
    """A kind of KINDS and the characters of the text that it covers, `end` exclusive."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """Everything found in `text`, in order, none inside another: the earlier and longer one counts."""
    found = list(_secrets(text))
    if "@" in text:
        found += [Finding("email", *match.span()) for match in EMAIL.finditer(text)]
    if DIGIT.search(text):
        letters, digits = LETTER_AT_DIGIT.search(text), SEVEN_DIGITS.search(text)
        if letters:
            is_iban = _validator("iban")
            found += [Finding("iban", *match.span()) for match in IBAN.finditer(text) if is_iban(match[0])]
        if letters or digits:
            found += _identity_numbers(text)
        if digits:
            found += _cards(text)
            found += _phones(text)
    return _without_overlaps(found) if found else found


def redact(text: str, findings: Sequence[Finding]) -> str:
    """The text with a placeholder such as [EMAIL] in the place of each finding."""
    pieces, position = [], 0
    for finding in findings:
        pieces += [text[position : finding.start], f"[{finding.kind.upper()}]"]
        position = finding.end
    return "".join([*pieces, text[position:]])


def masked(text: str, finding: Finding) -> str:
    """First and last character of a finding: enough to find it again, never the value."""
    value = text[finding.start : finding.end]
    return f"{value[0]}{'*' * min(len(value) - 2, 8)}{value[-1]}"


def _without_overlaps(found: list[Finding]) -> list[Finding]:
    kept: list[Finding] = []
    # Of equal spans the kind that comes first in KINDS' reverse is the more specific: a secret, an identity number.
    for finding in sorted(found, key=lambda one: (one.start, -one.end, -KINDS.index(one.kind))):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return kept


@cache
def _validator(module: str) -> Callable[[str], bool]:
    is_valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return is_valid


def _cards(text: str) -> Iterator[Finding]:
    for match in CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if CARD_ISSUERS.fullmatch(digits) and _validator("luhn")(digits):
            yield Finding("payment_card", *match.span())


def _identity_numbers(text: str) -> Iterator[Finding]:
    for match in IDENTITY_CANDIDATE.finditer(text):
        before = text[max(0, match.start() - CUE_CHARACTERS) : match.start()]
        for number in IDENTITY_NUMBERS:
            if (
                re.fullmatch(number.written, match[0])
                and (not number.cue or re.search(rf"\b(?:{number.cue})\b", before, re.IGNORECASE))
                and _validator(number.module)(match[0])
            ):
                yield Finding("national_id", *match.span())
                break


def _phones(text: str) -> Iterator[Finding]:
    import phonenumbers

    if INTERNATIONAL_PHONE.search(text):
        for match in phonenumbers.PhoneNumberMatcher(text, None):
            yield Finding("phone", match.start, match.end)
    for found in AMERICAN_PHONE.finditer(text):
        if _is_phone(found[0], ("US",)):
            yield Finding("phone", *found.span())
    for found in NAMED_PHONE.finditer(text):
        if _is_phone(found[1], PHONE_REGIONS):
            yield Finding("phone", *found.span(1))


def _is_phone(number: str, regions: Sequence[str]) -> bool:
    import phonenumbers

    for region in regions:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False


@cache
def _denylist(plugin: str) -> tuple[re.Pattern[str], ...]:
    module, _, name = plugin.partition(".")
    detector: Any = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
    return tuple(detector.denylist)


def _secrets(text: str) -> Iterator[Finding]:
    # A loop over plain words: it runs for every text, and most texts hold none of them.
    plugins = {plugin: None for hint, plugin in SECRET_HINTS if hint in text}
    for plugin in plugins:
        for pattern in _denylist(plugin):
            for match in pattern.finditer(text):
                start, end = match.span()
                if "PRIVATE KEY" in match[0]:  # the header alone is no secret: the key goes on to its end
                    start -= 5 if text[max(0, start - 5) : start] == "-----" else 0
                    closing = END_OF_PRIVATE_KEY.search(text, end)
                    end = closing.end() if closing else end
                if end > start:
                    yield Finding("secret", start, end)
