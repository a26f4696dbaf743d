"""Personal data: found in the forms that people write, not in the numbers that any report is full of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import prepare_data
from pipeline_steps.contract.errors import DataError
from pipeline_steps.data.personal_data import find, masked, redact
from pipeline_steps.prepare_data import PrepareJob

KEY = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIBOgIBAAJBAK\nabcdef\n-----END RSA PRIVATE " + "KEY-----"

# All of them synthetic: documented test cards, example.com, numbers kept for fiction or made for this test. Keys are put
# together here, so that nobody's scanner takes this file for a leak.
FOUND = [
    ("email", "write to jane.doe+notes@mail.example.com."),
    ("email", "Contact: <ops@example.co.uk>"),
    ("phone", "call +44 20 7946 0018 now"),
    ("phone", "Our number is +1 (202) 555-0143."),
    ("phone", "reach us at (202) 555-0143 or later"),
    ("phone", "202-555-0143"),
    ("phone", "Telefon: 030 901820"),
    ("phone", "teléfono 912 345 678"),
    ("payment_card", "card 4111 1111 1111 1111, thanks"),
    ("payment_card", "paid with 5555555555554444"),
    ("payment_card", "amex 3782 822463 10005"),
    ("iban", "to GB82 WEST 1234 5698 7654 32 today"),
    ("iban", "DE89370400440532013000"),
    ("national_id", "SSN 536-90-4399"),
    ("national_id", "DNI 54362315K"),
    ("national_id", "NIE X-5253868-R"),
    ("national_id", "codice fiscale RCCMNL83S18D969H"),
    ("national_id", "CPF 390.533.447-05"),
    ("national_id", "RUT 12.531.909-2"),
    ("national_id", "CURP BOXW310820HNERXN09"),
    ("national_id", "PESEL: 44051401359"),
    ("national_id", "BSN 111222333"),
    ("national_id", "NHS number 943 476 5870"),
    ("secret", "key = AKIA" + "IOSFODNN7EXAMPLE"),
    ("secret", "token ghp_" + "a1B2" * 9),
    ("secret", "postgres://admin:hunter2" + "@db.example.com/x"),
    ("secret", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
    ("secret", KEY),
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_what_is_personal_is_found_and_redacted(kind: str, text: str) -> None:
    findings = find(text)
    assert [finding.kind for finding in findings] == [kind]
    assert f"[{kind.upper()}]" in redact(text, findings)
    assert find(redact(text, findings)) == []


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-11-24 at 10:45:30, 1,234,567.89 USD (12.5 %) were paid in 2019-2024.",
        "Version 10.15.7 of 192.168.100.14, order 20241124-0001, invoice 100200300.",
        "ISBN 978-3-16-148410-0, section 12.3.4, lines 1200-1300, 3.14159265358979",
        "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904, 550e8400-e29b-41d4-a716-446655440000",
        "| 2021 | 1 200 300 | 4 500 600 |\n| 2022 | 1 300 400 | 4 700 800 |",
        "for i in range(1000000): x[i] = 0xDEADBEEF + 4111111111111112",
        "The 16 digits 1234567812345678 are no card, 123-45-678 is no SSN, and user@localhost no address.",
        "Sailings at 07:30 0815 0945 1100 1215 1330 1445 1600 1715",
        "-----BEGIN CERTIFICATE-----",
        "See https://example.com/path?x=1 and a@b",
        "",
    ],
)
def test_ordinary_numbers_are_left_alone(text: str) -> None:
    assert find(text) == []


def test_findings_do_not_overlap_and_all_other_text_is_kept() -> None:
    text = "a jane@example.com b +44 20 7946 0018 c 4111 1111 1111 1111 d 536-90-4399 e"
    findings = find(text)
    assert [finding.kind for finding in findings] == ["email", "phone", "payment_card", "national_id"]
    assert redact(text, findings) == "a [EMAIL] b [PHONE] c [PAYMENT_CARD] d [NATIONAL_ID] e"


def test_a_private_key_is_redacted_to_its_end() -> None:
    assert redact(f"before\n{KEY}\nafter", find(f"before\n{KEY}\nafter")) == "before\n[SECRET]\nafter"


@given(st.text(max_size=300))
def test_no_text_breaks_it_and_findings_lie_in_it(text: str) -> None:
    end = 0
    for finding in find(text):
        assert end <= finding.start < finding.end <= len(text)
        end = finding.end


@given(st.sampled_from(FOUND), st.text(alphabet="ab \n", max_size=20))
def test_a_mask_never_shows_more_than_two_characters(found: tuple[str, str], around: str) -> None:
    text = f"{around} {found[1]}"
    for finding in find(text):
        shown = masked(text, finding)
        assert len(shown.replace("*", "")) <= 2
        assert text[finding.start : finding.end] != shown


# ---------------------------------------------------------------- the policy


def rows(number: int = 60) -> list[dict[str, str]]:
    words = ["harbour", "ferry", "notice", "crossing", "deck"]
    return [
        {"instruction": "Sum up.", "context": " ".join(f"{word}{n * 7 + i}" for i, word in enumerate(words)), "response": f"answer{n}"}
        for n in range(number)
    ]  # fmt: skip


@pytest.fixture
def leaky(raw: Callable[[dict[str, Any]], Path]) -> Path:
    content = rows()
    content[4]["context"] += " write to jane@example.com or john@example.com"
    content[9]["response"] += " or call +44 20 7946 0018"
    return raw({"x.jsonl": content})


def run(raw: Path, output: Path, policy: Any) -> dict[str, Any]:
    return prepare_data.run(PrepareJob(str(raw), output / "report", "instruction", personal_data=policy))


def test_by_default_it_is_counted_by_kind_and_row_and_shown_masked(leaky: Path, tmp_path: Path) -> None:
    card = run(leaky, tmp_path, "report")
    assert card["personal_data"]["kinds"] == {
        "email": {"findings": 2, "rows": 1},
        "phone": {"findings": 1, "rows": 1},
    }
    assert card["personal_data"]["examples"][0] == {"row": "x.jsonl:5", "kind": "email", "masked": "j********m"}
    text = json.dumps(card["personal_data"])
    assert "jane" not in text and "7946" not in text


def test_redaction_reaches_what_is_trained_on(leaky: Path, tmp_path: Path) -> None:
    reported, redacted = run(leaky, tmp_path / "a", "report"), run(leaky, tmp_path / "b", "redact")
    assert reported["dataset_digest"] != redacted["dataset_digest"]
    assert redacted["personal_data"]["kinds"] == reported["personal_data"]["kinds"]
    assert redacted["counts"] == reported["counts"], "a row keeps its side"


def test_the_policy_fail_refuses_with_counts_and_places(leaky: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(leaky, tmp_path / "c", "fail")
    assert "email: 2 in 1 rows, phone: 1 in 1 rows" in caught.value.problems[0]
    assert caught.value.problems[1] == "x.jsonl:5: email j********m"
    assert not (tmp_path / "c" / "report").exists()
