"""A certificate in other people's forms: one paragraph for a contract, and an entry of the DP Deployments Registry.

Both are read off the certificate. What it does not hold is left out of the registry's entry and listed, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.statement import Predicate, Statement
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text

RELATIONS = {
    "add_or_remove_one": "adding or removing",
    "replace_one": "replacing",
    "zero_out": "blanking",
}
OWNER = "stated_by_owner"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A certificate in another form: plain values, text, and the registry's keys that the certificate does not fill."""

    values: dict[str, Any]
    text: str
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.export/1``."""
        return {"schema": "dpaudit.export/1"} | self.values

    def __str__(self) -> str:
        return self.text


def export(statement: Statement, form: str) -> Exported:
    """A certificate as a "paragraph" for a contract, or as an entry of the "registry" in YAML.

    Parameters
    ----------
    statement : Statement
        As :func:`read_certificate` gives it.
    form : str
        "paragraph" or "registry".

    Returns
    -------
    Exported
        Text, plain values, and the registry's keys that the certificate does not fill.

    Raises
    ------
    InvalidValue
        If ``form`` is neither.
    InvalidEvidence
        If the certificate holds no claim or no ledger.
    """
    validate.one_of(("paragraph", "registry"), form=form)
    if form == "paragraph":
        text = contract_paragraph(statement)
        return Exported(values={"paragraph": text}, text=text)
    found = registry_entry(statement)
    values = {"registry": found.entry, "missing": list(found.missing)}
    return Exported(values=values, text=yaml(found.entry), missing=found.missing)


def contract_paragraph(statement: Statement) -> str:
    """One paragraph that can stand in a contract: the claim, what it rests on, what was tested, and what it is not.

    Raises
    ------
    InvalidEvidence
        When the certificate holds no claim or no ledger.
    """
    body = statement.predicate
    claim, ledger = body.claim, body.ledger
    if claim is None or ledger is None:
        raise InvalidEvidence("the certificate holds no claim or no ledger, so that nothing can be said of either.")
    files = ", ".join(f"{s.name} (SHA-256 {s.digest.sha256})" for s in statement.subject[:3]) or "no file"
    more = f" and {len(statement.subject) - 3} more files" if len(statement.subject) > 3 else ""
    each = "" if claim.max_records_per_unit == 1 else f", with at most {claim.max_records_per_unit} records each"
    bounds = [row["epsilon_upper"] for row in _guarantees(body) if isinstance(row.get("epsilon_upper"), (int, float))]
    accounted = (
        "the training steps recorded in the ledger give epsilon of at most"
        f" {upper_text(min(bounds), within=claim.epsilon)}"
        if bounds
        else "no accountant gives an upper bound for the recorded training steps"
    )
    result = (body.audit.result or {}) if body.audit is not None else {}
    primary = result.get("primary") if isinstance(result.get("primary"), Mapping) else {}
    lower = (primary or {}).get("epsilon_lower")
    tested = (
        f"An attack on the released model showed epsilon of at least {lower_text(lower, beyond=claim.epsilon)} with"
        f" confidence {exact_text((primary or {}).get('confidence', 0.95))}."
        if isinstance(lower, (int, float))
        else "The released model was not attacked."
    )
    epsilon, delta = exact_text(claim.epsilon), exact_text(claim.delta)
    return (
        f"The training that produced {files}{more} is claimed to be (epsilon, delta)-differentially private with"
        f" epsilon = {epsilon} and delta = {delta} under {RELATIONS[claim.relation]} one {claim.unit}{each}: no"
        f" outcome of this training becomes more likely by more than the factor e^{epsilon}, plus {delta}, whether"
        f" or not one {claim.unit} took part. Under the same relation, {accounted}. {tested} The verdict of the"
        f" certificate (statement {body.digest}) is {body.verdict.name}. The certificate does not say that the"
        " model is private or safe; it does not cover other units of privacy, other uses of the same data, or"
        " steps outside the recorded training; and who issued it is shown by a signature alone."
    )


def _guarantees(body: Predicate) -> list[Mapping[str, Any]]:
    rows = body.accounting.to_plain().get("guarantees", [])
    return [row for row in rows if isinstance(row, Mapping)]


@dataclasses.dataclass(frozen=True, slots=True)
class RegistryEntry:
    """An entry of the registry, and the keys of its schema that the certificate does not fill."""

    entry: dict[str, Any]
    missing: tuple[str, ...]


def registry_entry(statement: Statement) -> RegistryEntry:
    """The certificate as a draft entry of the DP Deployments Registry (OpenDP, schema of 2509.13509).

    What the owner stated is taken as stated. Keys that nothing fills stay out and are named in ``missing``.
    """
    body = statement.predicate
    if body.claim is None or body.ledger is None:
        raise InvalidEvidence("the certificate holds no claim or no ledger; a registry entry needs both.")
    claim, stated = body.claim, _stated(body)
    stages = body.ledger.stages
    samplings = sorted({str(stage.get("sampling")) for stage in stages})
    wanted: dict[str, dict[str, Any]] = {
        "product": {
            "name": stated.get("model"),
            "data_curators": None if stated.get("provider") is None else [stated["provider"]],
            "intended_use": stated.get("intended_use"),
            "data_product_type": "Machine learning model",
            "data_product_region": None,
            "description": _trained_on(stated),
            "publication_date": None,
            "data_product_sector": None,
        },
        "dp_flavor": {
            "name": "Approximate DP",
            "input_metric": f"{RELATIONS[claim.relation]} records",
            "bound_on_input_distance": claim.max_records_per_unit,
            "output_measure": "smoothed max divergence",
            "bound_on_output_distance": f"({exact_text(claim.epsilon)}, {exact_text(claim.delta)})",
            "data_domain": None,
            "unprotected_quantities": "the declared number of records, batch size, steps, clipping norm and noise",
        },
        "privacy_loss": {
            "privacy_unit": claim.unit,
            "privacy_unit_description": f"at most {claim.max_records_per_unit} record(s) of one {claim.unit}",
            "privacy_parameters": {"epsilon": claim.epsilon, "delta": claim.delta},
            "privacy_parameters_description": f"verdict of the certificate: {body.verdict.name}",
        },
        "model": {
            "model_name": "Central" if (body.scope.trust_model or "").startswith("central") else None,
            "actors": body.scope.trust_model,
            "release_type": "One release",
            "data_source_type": "Static",
            "access_type": "Non-interactive",
        },
        "accounting": {
            "post_processing": "everything after the noisy sums of each step",
            "composition": f"{sum(int(stage.get('steps', 0)) for stage in stages)} steps, composed numerically",
        },
        "implementation": {
            "pre_processing_eda_hyperparameter_tuning": None,
            "mechanisms": f"{body.mechanism.get('algorithm', 'Gaussian mechanism')}; sampling {', '.join(samplings)}",
            "justification": stated.get("justification"),
        },
        "resources": {
            "sources": f"dpaudit certificate, statement SHA-256 {body.digest}",
            "registry_authors": None if stated.get("contact") is None else [stated["contact"]],
        },
    }
    filled = {part: {k: v for k, v in keys.items() if v is not None} for part, keys in wanted.items()}
    missing = tuple(f"{part}.{k}" for part, keys in wanted.items() for k, v in keys.items() if v is None)
    return RegistryEntry({"status": "Draft", "tier": 1, "deployment": filled}, missing)


def _trained_on(stated: Mapping[str, str]) -> str | None:
    told = [stated[key] for key in ("data_name", "data_origin") if key in stated]
    return f"Fine-tuned on {'; '.join(told)} (stated by the owner)" if told else None


def _stated(body: Predicate) -> dict[str, str]:
    words = body.provenance.get(OWNER)
    return {k: str(v) for k, v in words.items() if isinstance(v, str)} if isinstance(words, Mapping) else {}


def yaml(value: Any, indent: int = 0) -> str:
    """Plain values as YAML, every text quoted: nothing in a certificate can end its line or begin a tag."""
    pad = "  " * indent
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            nested = isinstance(item, (Mapping, list, tuple)) and len(item)
            lines.append(f"{pad}{key}:" + (f"\n{yaml(item, indent + 1)}" if nested else f" {_scalar(item)}"))
        return "\n".join(lines)
    if isinstance(value, (list, tuple)):
        return "\n".join(f"{pad}- {_scalar(item)}" for item in value)
    return pad + _scalar(value)


def _scalar(value: Any) -> str:
    import json

    return "{}" if isinstance(value, Mapping) else json.dumps(value)
