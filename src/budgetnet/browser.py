"""A page that classifies pictures by an ONNX file, all in the browser, for any server of plain files."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from budgetnet.classifier import Classifier
from budgetnet.files import atomic_write
from budgetnet.markup import escaped

RUNTIME = "onnxruntime-web@1.30.0"
"""What computes; the page loads it from node_modules, where `npm install` puts it."""


def write(path: Path, model: str, classifier: Classifier) -> None:
    """Write a page for an ONNX file of `deployed.to_onnx`.

    It resizes pictures as Pillow does, to the digit, so that it says what `budgetnet predict` says. A content policy
    in it lets it load what lies beside it, and nothing else.

    Args:
        path: the page.
        model: the name of the ONNX file beside it.
        classifier: what the file was made from.

    Raises:
        WriteError: the page cannot be written.
    """
    here = Path(__file__)
    template, style, script = (here.with_suffix(end).read_text("utf-8") for end in (".html", ".css", ".js"))
    script = script.replace("@runtime@", RUNTIME)
    known = {"file": quote(model), "size": classifier.image_size, "classes": classifier.classes}
    data = json.dumps(known).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval' {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data: blob:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'"
    )
    about = f"{classifier.model.name}: {classifier.parameters:,} parameters, {len(classifier.classes)} classes."
    filled = {
        "policy": policy,
        "title": escaped(Path(model).stem),
        "about": escaped(about),
        "size": str(classifier.image_size),
        "style": style,
        "model": data,
        "script": script,
    }
    for key, value in filled.items():
        template = template.replace(f"@{key}@", value)
    atomic_write(path, template.encode("utf-8", "replace"))


def _hash(content: str) -> str:
    """What a content policy calls an inline script or style that it lets pass."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
