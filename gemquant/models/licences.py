"""The terms under which generations of Gemma are published, and what they ask of every copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """Terms of a generation's weights.

    name, link: as the Hub's front matter spells them. notice: text that every copy carries in a
    file NOTICE. card: Markdown for the model card. links: what the card must link to.
    gate: question that the Hub asks before it hands out files; empty where it asks none.
    """

    name: str
    link: str
    notice: str
    card: str
    links: tuple[str, ...]
    gate: str = ""


GEMMA_TERMS = Licence(
    name="gemma",
    link="https://ai.google.dev/gemma/terms",
    # Section 3.1 asks every copy to carry this sentence.
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n",
    card="""\
Gemma is provided under and subject to the Gemma Terms of Use found at
[ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms). The weights in this folder were
modified, as described above. They may not be used for what the
[Gemma Prohibited Use Policy](https://ai.google.dev/gemma/prohibited_use_policy) excludes. Whoever
passes them on must pass on these terms and the `NOTICE` file with them.""",
    links=("ai.google.dev/gemma/terms", "ai.google.dev/gemma/prohibited_use_policy"),
    gate="To access Gemma on Hugging Face, you’re required to review and agree to Google’s "
    "usage license. To do this, please ensure you’re logged in to Hugging Face and click "
    "below. Requests are processed immediately.",
)
