"""``gemquant sign``: a signature over an artifact's manifest and every file in it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gemquant.cli.flags import flags, output_flags
from gemquant.core.progress import reporter
from gemquant.errors import echo

PASSWORD = "GEMQUANT_KEY_PASSWORD"  # noqa: S105 (the variable's name)


@click.command(
    "sign",
    epilog="""\b
Examples:
  openssl ecparam -genkey -name prime256v1 -noout -out signing.key
  openssl ec -in signing.key -pubout -out signing.pub
  gemquant sign gemma-2-2b-awq --private-key signing.key
  gemquant verify gemma-2-2b-awq --public-key signing.pub""",
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="PEM of an elliptic curve key: P-256, P-384 or P-521.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the signature here instead of to ARTIFACT/model.sig.",
)
@click.option("--force", is_flag=True, help="Replace an existing signature.")
@flags(*output_flags())
def command(
    artifact: Path,
    *,
    private_key: Path,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Sign an artifact: its manifest and every file in it.

    The signature is an OpenSSF model signature (extra signing); `gemquant verify --public-key` and
    the program model_signing check it. The artifact is verified first, and must not change
    afterwards. The password of an encrypted key is read from GEMQUANT_KEY_PASSWORD.
    """
    from gemquant.cli import render
    from gemquant.publish.sign import sign
    from gemquant.publish.verify import signature_path

    signature = signature_path(artifact) if output is None else output
    password = os.environ.get(PASSWORD)
    with reporter(quiet=quiet) as progress:
        progress.start(f"verifying and signing {artifact}", 0)
        sign(
            artifact,
            private_key=private_key,
            signature=signature,
            password=None if password is None else password.encode(),
            force=force,
        )
    if as_json:
        render.print_json({"path": str(artifact), "signature": str(signature)})
    else:
        echo(f"{signature}: signature of {artifact}")
