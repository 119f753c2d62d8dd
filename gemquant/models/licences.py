"""The terms under which generations of Gemma are published, and what they ask of every copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """Terms of a generation's weights.

    name, link: as the Hub's front matter spells them. notice: text that every copy carries in a
    file NOTICE. card: Markdown for the model card. links: what the card must link to.
    gate: question that the Hub asks before it hands out files; empty where it asks none.
    listed: the Hub has an identifier for it; without one a card says ``license: other`` and the
    name as ``license_name``.
    """

    name: str
    link: str
    notice: str
    card: str
    links: tuple[str, ...]
    gate: str = ""
    listed: bool = True


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

APACHE = Licence(
    name="apache-2.0",
    link="https://www.apache.org/licenses/LICENSE-2.0",
    # Section 4(b) asks changed files to say so.
    notice="Gemma 4 is licensed under the Apache License, Version 2.0, found at "
    "www.apache.org/licenses/LICENSE-2.0\nThe weights were changed: they were converted.\n",
    card="""\
Gemma 4 is licensed under the [Apache License, Version
2.0](https://www.apache.org/licenses/LICENSE-2.0). The weights in this folder were modified, as
described above. Whoever passes them on must pass on this license and the `NOTICE` file.""",
    links=("www.apache.org/licenses/LICENSE-2.0",),
)
"""Of Gemma 4."""

HEALTH_AI = Licence(
    name="health-ai-developer-foundations",
    link="https://developers.google.com/health-ai-developer-foundations/terms",
    # Section 3.1 asks every copy to carry this sentence.
    notice="HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of "
    "Use found at https://developers.google.com/health-ai-developer-foundations/terms\n",
    card="""\
HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use found at
[developers.google.com/health-ai-developer-foundations/terms](https://developers.google.com/health-ai-developer-foundations/terms).
The weights in this folder were modified, as described above. They may not be used for what section
3.2 of these terms and the
[Prohibited Use Policy](https://developers.google.com/health-ai-developer-foundations/prohibited-use-policy)
exclude. Whoever passes them on must pass on these terms and the `NOTICE` file with them.""",
    links=(
        "developers.google.com/health-ai-developer-foundations/terms",
        "developers.google.com/health-ai-developer-foundations/prohibited-use-policy",
    ),
    listed=False,
)
"""Of MedGemma, whatever its generation."""


def licence_named(name: str, generation: Licence) -> Licence:
    """The terms that a model names, where they replace those of its generation; else the latter."""
    return HEALTH_AI if name == HEALTH_AI.name else generation
