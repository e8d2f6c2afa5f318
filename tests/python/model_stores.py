"""Stores of models made by tests: Ollama's, with manifests and blobs as it writes them, and LM Studio's folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest


def own_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all stores lie below a folder, so that nothing of this machine's own is seen."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("BEE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder / "ollama"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def write_ollama(store: Path, name: str, layers: Mapping[str, bytes]) -> Path:
    """A model of Ollama: blobs by their digest, and the manifest that lists them, whose path is returned."""
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    listed = []
    for kind, content in layers.items():
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        listed.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)})
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "0" * 64}
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": listed}))
    return manifest


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files below a folder, which is returned."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
